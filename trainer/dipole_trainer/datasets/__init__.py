"""Files of prompts, pairs and recordings, checked line by line."""
