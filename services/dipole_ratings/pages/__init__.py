"""The pages of the rating service: `/rate`, where people rank images, and `/operator`, where somebody looks after them."""
