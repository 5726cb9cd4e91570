"""Real and synthetic images with their labels, read without changing any of the user's files."""
