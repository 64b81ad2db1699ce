"""Scores, intervals and diversity on fixed prompts and noises."""
