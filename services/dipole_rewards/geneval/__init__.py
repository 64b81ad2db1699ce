"""GenEval's rules: objects found, colours named, answers checked."""
