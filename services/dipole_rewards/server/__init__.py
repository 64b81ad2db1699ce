"""The ranking protocol over HTTP, whoever ranks."""
