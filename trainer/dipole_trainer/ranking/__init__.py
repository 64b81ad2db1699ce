"""Groups of candidates, those who rank them, and the way from scores to an order."""
