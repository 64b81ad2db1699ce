"""The sampler process: it draws images for the API."""
