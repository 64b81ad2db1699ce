"""The service over HTTP: the ranking protocol, raters, the operator, health."""
