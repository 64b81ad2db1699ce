"""The trainer: jobs, ranking over Celery, and the DrPO training loop."""
