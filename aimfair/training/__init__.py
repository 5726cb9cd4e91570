"""Training a classifier on biased images, measuring its sensitivity, and tuning what a mask selects."""
