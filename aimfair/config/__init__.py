"""Settings as one validated tree: assembled from the nodes that each part owns, read from YAML and flags."""

from aimfair.config.tree import Config

__all__ = ["Config"]
