"""Dipole's shared package: the ranking protocol, its client, what every process has in common. No torch, no FastAPI."""
