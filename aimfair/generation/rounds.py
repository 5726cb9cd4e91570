"""Which images are still to be made, given what came of those that were: a function of plan and outcomes alone.

Round 0 tries every image of the plan, round r those that were rejected in round r - 1. A round ends when all its images
are there: only then is it decided which of them are too like one another, in the order of the plan, so that neither the
number of processes nor the order in which they work has a say.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from aimfair.generation.filters.near_duplicates import NearDuplicates
from aimfair.generation.manifest import Outcome
from aimfair.generation.plan import PlannedImage


class Rounds:
    """The rounds of a plan, as far as they have come.

    Args:
        plan: numbered from 0.
        near_duplicates: two images of a group are too like each other if their hashes differ in so many bits of 64,
            or fewer; None: there are no hashes.

    Attributes:
        outcomes: (image, attempt) -> what came of it.
        attempt: the number of the present round.
        wanted: the images of the present round, in the order of the plan; empty when all are kept.
        kept: number of an image -> its outcome.
        rejected: number of an image -> why its attempts in earlier rounds were rejected.
    """

    def __init__(self, plan: Sequence[PlannedImage], near_duplicates: int | None = None):
        self._plan = plan
        self._bits = near_duplicates
        self.outcomes: dict[tuple[int, int], Outcome] = {}
        self.attempt = 0
        self.wanted: list[PlannedImage] = list(plan)
        self.kept: dict[int, Outcome] = {}
        self.rejected: dict[int, list[str]] = {planned.image: [] for planned in plan}
        self._hashes: dict[tuple[int, int], NearDuplicates] = {}

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Adds outcomes, of this round or of any, and ends the rounds that are complete."""
        self.outcomes.update((outcome.key, outcome) for outcome in outcomes)
        while self.wanted and not self.missing():
            self._end_round()

    def missing(self) -> list[PlannedImage]:
        """The images of the present round that nobody has made."""
        return [planned for planned in self.wanted if (planned.image, self.attempt) not in self.outcomes]

    def batches(self, size: int) -> list[list[PlannedImage]]:
        """The present round cut from its first image on: an image that is made again has the same neighbours."""
        return [self.wanted[start : start + size] for start in range(0, len(self.wanted), size)]

    @property
    def rejections(self) -> list[tuple[PlannedImage, str]]:
        """Every rejected attempt that is known, those of the present round, too."""
        earlier = [(planned, reason) for planned in self._plan for reason in self.rejected[planned.image]]
        present = ((planned, self.outcomes.get((planned.image, self.attempt))) for planned in self.wanted)
        return earlier + [(one, outcome.reason) for one, outcome in present if outcome and outcome.reason is not None]

    @property
    def finished(self) -> int:
        """Images that are kept, or will be unless they are too like others."""
        later = {image for (image, attempt), one in self.outcomes.items() if attempt >= self.attempt and not one.reason}
        return len(self.kept) + sum(planned.image in later for planned in self.wanted)

    def decided(self) -> list[Outcome]:
        """All outcomes; those that were found to be too like others in an earlier round say so themselves."""
        return [
            Outcome(image=image, attempt=attempt, digest=None, hash=None, reason=self.rejected[image][attempt])
            if attempt < len(self.rejected[image])
            else outcome
            for (image, attempt), outcome in self.outcomes.items()
        ]

    def _end_round(self) -> None:
        outcomes = [self.outcomes[planned.image, self.attempt] for planned in self.wanted]
        reasons = [outcome.reason for outcome in outcomes]
        digests = {outcome.digest for outcome in self.kept.values()}
        for place, outcome in enumerate(outcomes):
            if outcome.digest is not None:
                if outcome.digest in digests:
                    reasons[place] = "duplicate"
                digests.add(outcome.digest)
        for place in self._near_others([place for place, reason in enumerate(reasons) if reason is None]):
            reasons[place] = "near_duplicate"
        again = []
        for planned, outcome, reason in zip(self.wanted, outcomes, reasons, strict=True):
            if reason is None:
                self.kept[planned.image] = outcome
            else:
                self.rejected[planned.image].append(reason)
                again.append(planned)
        self.wanted = again
        self.attempt += 1

    def _near_others(self, places: Sequence[int]) -> list[int]:
        """Those of the ``places`` in the present round that are too like one of their group that is kept."""
        if self._bits is None:
            return []
        groups: dict[tuple[int, int], list[int]] = {}
        for place in places:
            groups.setdefault((self.wanted[place].y, self.wanted[place].a), []).append(place)
        found = []
        for group, members in groups.items():
            texts = [self.outcomes[self.wanted[place].image, self.attempt].hash or "0" for place in members]
            hashes = np.array([int(text, 16) for text in texts], dtype=np.uint64)
            added = self._hashes.setdefault(group, NearDuplicates(self._bits)).add(hashes)
            found += [place for place, new in zip(members, added, strict=True) if not new]
        return found
