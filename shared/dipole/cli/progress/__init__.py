"""What commands show while something goes on: waits, and jobs."""
