"""Commands for people as a reward: `dipole ratings …`, and the demo that trains on what its visitor ranks."""
