"""Scores of images from any reward endpoint, and the shapes that other people's trainers want them in. No torch."""
