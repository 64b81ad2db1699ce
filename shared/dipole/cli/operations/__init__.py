"""What whoever runs a platform does with it, beside starting it."""
