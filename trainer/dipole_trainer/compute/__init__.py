"""A device's memory: micro-batches, caches, a lost GPU."""
