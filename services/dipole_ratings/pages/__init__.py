"""The pages of the rating service: `/rate`, where people rank, and `/operator`, where somebody looks after it."""
