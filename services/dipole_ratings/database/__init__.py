"""The ratings database: tables and migrations."""
