"""Which images are still to be made, and when to give up: a function of the plan and the outcomes so far alone.

Round 0 tries every image of the plan, round r those rejected in round r - 1. Duplicates are found at the end of a
round, in the order of the plan, so the result does not depend on the number of processes or the order of their work.
The images of a pair are replaced together: each image of a rejected one's pair is made again, from the seed that they
share in the next round.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from aimfair.base.errors import AimfairError
from aimfair.generation.filters.pixels import BLANK, NearDuplicates
from aimfair.generation.manifest import Outcome
from aimfair.generation.plan import Group, PlannedImage
from aimfair.generation.settings import GenerateSettings

PARTNER = "partner"
"""Why a good image is made again: another of its pair was rejected."""

_BROKEN = BLANK | {"duplicate"}  # what a working model rarely makes
_BROKEN_ATTEMPTS = 5  # at one image; a model that fails this often in a row will keep failing
_ATTEMPTS = 50  # with filters; if they reject two of three, one image in a billion gets this far
_ADVICE = (
    "try generate.dtype float32 or bfloat16, another generate.model or more steps, or, if a filter rejects them, "
    "looser generate.filters"
)


class Rounds:
    """The rounds of a plan so far.

    Args:
        plan: numbered from 0.
        settings: ``batch_size``, ``max_rejections`` and ``filters.near_duplicates`` matter.

    Attributes:
        outcomes: (image, attempt) -> its outcome.
        attempt: the number of the current round.
        wanted: the images of the current round, in the order of the plan; empty when all are kept.
        kept: number of an image -> its outcome.
        rejected: number of an image -> why its attempts in earlier rounds were rejected.
    """

    def __init__(self, plan: Sequence[PlannedImage], settings: GenerateSettings):
        self._plan, self._settings = plan, settings
        self.outcomes: dict[tuple[int, int], Outcome] = {}
        self.attempt = 0
        self.wanted: list[PlannedImage] = list(plan)
        self.kept: dict[int, Outcome] = {}
        self.rejected: dict[int, list[str]] = {planned.image: [] for planned in plan}
        self._hashes: dict[Group, NearDuplicates] = {}

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Adds outcomes of any round, and ends the rounds that are complete."""
        self.outcomes.update((outcome.key, outcome) for outcome in outcomes)
        while self.wanted and not any(self.is_missing(planned) for planned in self.wanted):
            self._end_round()

    def is_missing(self, planned: PlannedImage) -> bool:
        """Whether an image of the current round has no outcome yet."""
        return (planned.image, self.attempt) not in self.outcomes

    def batches(self) -> list[list[PlannedImage]]:
        """The current round, always cut from its first image on: an image made again has the same neighbours."""
        size = self._settings.batch_size
        return [self.wanted[start : start + size] for start in range(0, len(self.wanted), size)]

    @property
    def rejections(self) -> list[tuple[PlannedImage, str]]:
        """Every known rejected attempt and its reason, those of the current round included."""
        earlier = [(planned, reason) for planned in self._plan for reason in self.rejected[planned.image]]
        current = ((planned, self.outcomes.get((planned.image, self.attempt))) for planned in self.wanted)
        return earlier + [(one, outcome.reason) for one, outcome in current if outcome and outcome.reason is not None]

    @property
    def finished(self) -> int:
        """Images that are kept, or will be unless they turn out to be duplicates."""
        later = {image for (image, attempt), one in self.outcomes.items() if attempt >= self.attempt and not one.reason}
        return len(self.kept) + sum(planned.image in later for planned in self.wanted)

    def decided(self) -> list[Outcome]:
        """All outcomes; an image rejected as a duplicate in an earlier round has that as its own reason."""
        return [
            Outcome(image=image, attempt=attempt, reason=self.rejected[image][attempt])
            if attempt < len(self.rejected[image])
            else outcome
            for (image, attempt), outcome in self.outcomes.items()
        ]

    def refuse_stubborn_images(self) -> None:
        """Gives up on an image that is rejected again and again.

        Raises:
            AimfairError: there is one.
        """
        for planned in self.wanted:
            reasons = self.rejected[planned.image]
            if sum(reason in _BROKEN for reason in reasons) >= _BROKEN_ATTEMPTS or len(reasons) >= _ATTEMPTS:
                raise AimfairError(
                    f"image {planned.image} ({planned.text!r}) was rejected {len(reasons)} times in a row "
                    f"({_counted(Counter(reasons))}); {_ADVICE}"
                )

    def refuse_many_rejections(self, rejected: Counter[str]) -> None:
        """Gives up on a model most of whose images are rejected.

        Args:
            rejected: reason -> images; partners do not count.

        Raises:
            AimfairError: there are more than ``max_rejections`` for each image of the plan.
        """
        most, wanted = self._settings.max_rejections, len(self._plan)
        if (count := rejected.total() - rejected[PARTNER]) > most * wanted:
            raise AimfairError(
                f"{count} images rejected ({_counted(rejected)}), more than {most:.0%} of the {wanted} wanted; raise"
                f" generate.max_rejections, or {_ADVICE}"
            )

    def _end_round(self) -> None:
        outcomes = [self.outcomes[planned.image, self.attempt] for planned in self.wanted]
        reasons = [outcome.reason for outcome in outcomes]
        digests = {outcome.digest for outcome in self.kept.values()}
        for place, outcome in enumerate(outcomes):
            if outcome.digest is not None:
                if outcome.digest in digests:
                    reasons[place] = "duplicate"
                digests.add(outcome.digest)
        self._reject_partners(reasons)  # before the hashes of those that stay are compared
        for place in self._near_duplicates([place for place, reason in enumerate(reasons) if reason is None]):
            reasons[place] = "near_duplicate"
        self._reject_partners(reasons)
        again = []
        for planned, outcome, reason in zip(self.wanted, outcomes, reasons, strict=True):
            if reason is None:
                self.kept[planned.image] = outcome
            else:
                self.rejected[planned.image].append(reason)
                again.append(planned)
        self.wanted = again
        self.attempt += 1

    def _reject_partners(self, reasons: list[str | None]) -> None:
        """Rejects the other images of each rejected one's pair, all of which are in the current round."""
        pairs: dict[int, list[int]] = defaultdict(list)
        for place, planned in enumerate(self.wanted):
            if planned.pair is not None:
                pairs[planned.pair].append(place)
        for places in pairs.values():
            if any(reasons[place] is not None for place in places):
                for place in places:
                    reasons[place] = reasons[place] or PARTNER

    def _near_duplicates(self, places: Sequence[int]) -> list[int]:
        """Those of the ``places`` in the current round that are too close to a kept image of their group."""
        bits = self._settings.filters.near_duplicates
        if bits is None:
            return []
        groups: dict[Group, list[int]] = {}
        for place in places:
            groups.setdefault(self.wanted[place].group, []).append(place)
        found = []
        for group, members in groups.items():
            texts = [self.outcomes[self.wanted[place].image, self.attempt].hash or "0" for place in members]
            hashes = np.array([int(text, 16) for text in texts], dtype=np.uint64)
            added = self._hashes.setdefault(group, NearDuplicates(bits)).add(hashes)
            found += [place for place, new in zip(members, added, strict=True) if not new]
        return found


def refuse_only_rejections(rejected: Counter[str], made: int) -> None:
    """Gives up on a model all of whose first images are rejected.

    Raises:
        AimfairError: ``rejected`` holds all ``made`` images.
    """
    if rejected.total() == made:
        raise AimfairError(f"the first {made} images were all rejected ({_counted(rejected)}); {_ADVICE}")


def _counted(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} {number}" for reason, number in reasons.most_common())
