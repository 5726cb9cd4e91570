"""Does it pay to select weights? Ways to tune, each with tuned settings, over gaps, biases and numbers of images.

``python -m tools.premise_study --help``; what it found is in docs/study.md.
"""
