"""Ablations: variants of a run that share all of its work that they can, and what they show."""
