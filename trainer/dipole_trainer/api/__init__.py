"""The API process: REST over the stores."""
