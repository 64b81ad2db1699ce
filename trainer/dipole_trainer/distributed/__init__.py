"""The processes that train one job together."""
