"""A run's figures, pictures and LoRA in the experiment trackers that `report_to` names."""
