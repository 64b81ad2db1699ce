"""What jobs may name: uploaded files, registered rewards, models; and the keys of those who call the API."""
