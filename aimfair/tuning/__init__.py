"""Chooses the settings of each method by trials that are judged without group labels of real images."""
