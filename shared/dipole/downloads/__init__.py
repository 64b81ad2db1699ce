"""Weights that others published: which they are, where they come from, and bringing them here."""
