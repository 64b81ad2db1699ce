"""People as a reward: a queue of ratings behind the ranking protocol, its raters, its operator."""
