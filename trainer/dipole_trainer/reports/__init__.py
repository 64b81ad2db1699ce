"""A job that has ended, on one page that needs nothing beside it: export/report.html."""
