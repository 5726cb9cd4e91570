"""Trains and checks the small text-to-image model of coloured digits that the package ships."""
