"""The first experiments on the premise benchmark: blocks, coverage, cost, prompts.

``python -m tools.first_experiments --help``; what they found is in docs/experiments.md.
"""
