"""What a run resumes from, and what leaves it."""
