"""Reward services: one FastAPI app for every reward, and the rewards themselves."""
