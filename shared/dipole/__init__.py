"""Dipole's shared package: the ranking protocol, its client, and what every process has in common. No torch, no FastAPI."""
