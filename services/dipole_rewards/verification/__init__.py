"""`dipole rewards verify`: a reward's published implementation, in an environment of its own, on the golden image."""
