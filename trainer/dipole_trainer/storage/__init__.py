"""Artifacts, and the names of the files in a job's folder."""
