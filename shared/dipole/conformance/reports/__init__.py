"""What the results of the checks are shown as: tables, JUnit XML, a verdict in JSON, a badge."""
