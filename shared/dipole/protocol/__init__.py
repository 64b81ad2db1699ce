"""The ranking protocol v1: its messages, its images, its problem documents."""
