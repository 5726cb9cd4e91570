"""Settings: one validated tree, read from YAML files and flags."""

from aimfair.config.tree import Config

__all__ = ["Config"]
