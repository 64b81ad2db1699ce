"""`dipole doctor` where the processes run: whether a set-up is right."""
