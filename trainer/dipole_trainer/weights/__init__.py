"""Where weights lie on this machine, and the formats of LoRA files."""
