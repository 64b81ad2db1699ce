"""`dipole demo`, on a reward or on what its visitor ranks."""
