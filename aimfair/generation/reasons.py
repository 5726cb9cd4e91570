"""Why images are rejected: the words that have a meaning to this package, which hooks cannot use for their own."""

from typing import Final

NOT_FINITE: Final = "not_finite"
BLACK: Final = "black"
CONSTANT: Final = "constant"
DUPLICATE: Final = "duplicate"
NEAR_DUPLICATE: Final = "near_duplicate"
OTHER_GROUP: Final = "other_group"
NO_FACE: Final = "no_face"
SEVERAL_FACES: Final = "several_faces"
UNSAFE: Final = "unsafe"
LOW_SCORE: Final = "low_score"
PARTNER: Final = "partner"
"""A good image is made again, as another of its pair was rejected."""

SHOWS: Final = "shows"
"""Begins the reasons that :func:`aimfair.generation.shown.reason` words."""

BLANK: Final = frozenset({NOT_FINITE, BLACK, CONSTANT})
"""An image shows nothing."""

WORDS: Final = (
    NOT_FINITE, BLACK, CONSTANT, DUPLICATE, NEAR_DUPLICATE, OTHER_GROUP, NO_FACE, SEVERAL_FACES, UNSAFE, LOW_SCORE,
    PARTNER,
)  # fmt: skip


def is_reserved(reason: str) -> bool:
    """Whether a hook cannot answer it: statistics and decisions depend on who did."""
    return reason in WORDS or reason.startswith(f"{SHOWS}_")
