"""One job's run: groups in, updates out."""
