"""The worker process: it trains the jobs that it claims."""
