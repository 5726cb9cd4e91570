"""Real and synthetic images with their labels, read without ever changing a file of the user."""
