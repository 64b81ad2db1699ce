"""Methods: from a ranked group to a loss. DrPO is the first; baselines join it on the same loop."""
