"""Synthetic images: prompts for every group, a plan of images, a text-to-image model, and the job that makes them."""
