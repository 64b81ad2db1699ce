"""Tasks, leases, answers, raters and deliveries, stored in SQL."""
