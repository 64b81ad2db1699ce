"""The rank worker process: it asks reward endpoints to score groups."""
