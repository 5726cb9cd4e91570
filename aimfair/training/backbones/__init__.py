"""One file for each library that classifiers come from; :mod:`aimfair.training.models` chooses among them."""
