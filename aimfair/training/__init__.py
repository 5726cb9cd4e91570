"""Trains a classifier, measures its gradient sensitivity, and tunes the weights that a mask selects."""
