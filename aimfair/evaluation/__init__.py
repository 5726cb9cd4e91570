"""How right a classifier is in each group, from one table of counts, and how sure that is."""
