"""Engines: what runs the modules of a text-to-image model (denoiser, decoder, text encoders)."""
