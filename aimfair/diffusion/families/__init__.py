"""Families of text-to-image models: what is specific to each."""
