"""A database as every process of ours uses it: SQLite or PostgreSQL, transactions, failures in words, migrations."""
