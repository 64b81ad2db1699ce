"""Asking: any reward endpoint, and the trainer's REST API."""
