"""What decides whether an image is kept."""
