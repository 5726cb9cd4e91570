"""Families of text-to-image models: what is particular to each."""
