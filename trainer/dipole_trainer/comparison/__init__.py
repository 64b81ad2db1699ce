"""The process of `dipole eval`: several models side by side on the same prompts and noises."""
