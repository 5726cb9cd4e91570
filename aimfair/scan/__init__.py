"""``aimfair scan``: examines a data set before anything is trained on it."""
