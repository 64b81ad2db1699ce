"""Rankers around another one, which look at what passes: they report, check, and leave the rest as it is."""
