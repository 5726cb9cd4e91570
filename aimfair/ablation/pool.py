"""Subsets of the synthetic images that a run has, so that a variant of their numbers makes no new ones."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from aimfair.ablation.plan import Parent
from aimfair.generation.manifest import Manifest

FLAG = "generate.folder"
"""The setting that says whence a run copies synthetic images; who gives it as a flag decides that alone."""


def available(parent: Parent) -> npt.NDArray[np.int64]:
    """int64 [Y, A]: images of each group that the parent has, in whichever set."""
    targets, protected = len(parent.config.prompts.targets), len(parent.config.prompts.protected)
    counts = np.zeros((targets, protected), dtype=np.int64)
    for record in Manifest(parent.run.synthetic).records.values():
        counts[record.group] += 1
    return counts


def from_parent(parent: Parent, **settings: Any) -> Mapping[str, Any]:
    """Settings of ``generate`` for a variant that draws from the parent's images."""
    folder = {} if FLAG in parent.flags else {"folder": str(parent.run.synthetic.resolve())}
    return {**folder, **settings}
