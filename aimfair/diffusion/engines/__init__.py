"""What runs the two parts of a text-to-image model that take nearly all of its time: denoiser and decoder."""
