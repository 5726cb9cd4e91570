"""Which images are still to be made, and when to give up: a function of the plan and the outcomes so far alone.

Round 0 tries every image of the plan, round r those rejected in round r - 1. Images are compared at the end of a
round, in the order of the plan, so the result does not depend on the number of processes or the order of their work.
The images of a pair are replaced together: each image of a rejected one's pair is made again, from the seed that they
share in the next round. What is relative to a group (its worst images, its near-duplicates up to a share) is decided by
its images of round 0, and holds in later rounds. An image that took part in such a decision and was rejected keeps what
was measured of it: when others are lost, the decision can be made again.
"""

import copy
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from aimfair.base.errors import AimfairError
from aimfair.generation.filter_settings import ATTEMPTS, MOST_BITS
from aimfair.generation.filters.pixels import NearDuplicates
from aimfair.generation.manifest import Measured, Outcome
from aimfair.generation.plan import Group, PlannedImage
from aimfair.generation.reasons import BLANK, DUPLICATE, LOW_SCORE, NEAR_DUPLICATE, PARTNER
from aimfair.generation.settings import GenerateSettings
from aimfair.generation.shown import values_in

_BROKEN = BLANK | {DUPLICATE}  # what a working model rarely makes
_BROKEN_ATTEMPTS = 5  # at one image; a model that fails this often in a row will keep failing
_FIRST, _FIRST_BROKEN = 100, 10  # images of a process; of filters that reject nine of ten, all 100 once in 40,000 jobs


class Rounds:
    """The rounds of a plan so far.

    Args:
        plan: numbered from 0.
        settings: ``batch_size``, ``max_rejections`` and the filters that compare images matter.

    Attributes:
        outcomes: (image, attempt) -> its outcome.
        attempt: the number of the current round.
        wanted: the images of the current round, in the order of the plan; empty when all are kept.
        kept: number of an image -> its outcome.
    """

    def __init__(self, plan: Sequence[PlannedImage], settings: GenerateSettings):
        self._plan, self._settings = plan, settings
        self.outcomes: dict[tuple[int, int], Outcome] = {}
        self.attempt = 0
        self.wanted: list[PlannedImage] = list(plan)
        self.kept: dict[int, Outcome] = {}
        self._rejected: dict[int, list[str]] = {}  # of images that were rejected in earlier rounds
        self._measured: dict[int, list[Measured]] = {}
        self._hashes: dict[Group, NearDuplicates | None] = {}
        self._least: dict[Group, float] = {}  # score of an image that is kept

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
        size = self._settings.images_at_a_time
        return [self.wanted[start : start + size] for start in range(0, len(self.wanted), size)]

    def reasons_of(self, image: int) -> list[str]:
        """Why the attempts at an image in earlier rounds were rejected."""
        return self._rejected.get(image, [])

    def measured_of(self, image: int) -> list[Measured]:
        """What was measured of each of these attempts."""
        return self._measured.get(image, [])

    @property
    def rejections(self) -> list[tuple[PlannedImage, str]]:
        """Every known rejected attempt and its reason, those of the current round included."""
        earlier = [(planned, reason) for planned in self._plan for reason in self.reasons_of(planned.image)]
        current = ((planned, self.outcomes.get((planned.image, self.attempt))) for planned in self.wanted)
        return earlier + [(one, outcome.reason) for one, outcome in current if outcome and outcome.reason is not None]

    @property
    def finished(self) -> int:
        """Images that are kept, or will be unless they turn out to be duplicates."""
        later = {image for (image, attempt), one in self.outcomes.items() if attempt >= self.attempt and not one.reason}
        return len(self.kept) + sum(planned.image in later for planned in self.wanted)

    def decided(self) -> list[Outcome]:
        """All outcomes; an image rejected by a comparison in an earlier round has that as its own reason."""
        return [
            Outcome(
                image=image,
                attempt=attempt,
                reason=self._rejected[image][attempt],
                **dict(self._measured[image][attempt]),
            )
            if attempt < len(self.reasons_of(image))
            else outcome
            for (image, attempt), outcome in self.outcomes.items()
        ]

    def refuse_stubborn_images(self) -> None:
        """Gives up on an image that is rejected again and again.

        Raises:
            AimfairError: there is one.
        """
        for planned in self.wanted:
            reasons = self.reasons_of(planned.image)
            if sum(reason in _BROKEN for reason in reasons) >= _BROKEN_ATTEMPTS or len(reasons) >= ATTEMPTS:
                raise AimfairError(
                    f"image {planned.image} ({planned.text!r}) was rejected {len(reasons)} times in a row "
                    f"({_counted(Counter(reasons))}); {_advice(Counter(reasons))}"
                )

    def refuse_many_rejections(self, rejected: Counter[str], current: Iterable[Outcome] = ()) -> None:
        """Gives up on a model most of whose images are rejected.

        Args:
            rejected: reason -> images; partners do not count.
            current: outcomes of this round that have not been added; the rejected ones are counted in ``rejected``.

        Raises:
            AimfairError: there are more than ``max_rejections`` for each image of the plan.
        """
        most, wanted = self._settings.max_rejections, len(self._plan)
        if (count := rejected.total() - rejected[PARTNER]) > most * wanted:
            group_of = {planned.image: planned.group for planned in self._plan}
            groups = Counter(planned.group for planned, reason in self.rejections if reason != PARTNER)
            groups.update(group_of[one.image] for one in current if one.reason is not None)
            ((y, a), worst), *_ = groups.most_common(1)
            raise AimfairError(
                f"{count} images rejected ({_counted(rejected)}), more than {most:.0%} of the {wanted} wanted;"
                f" {worst} of them are of group (y={y}, a={a}); raise generate.max_rejections, or"
                f" {_advice(rejected)}"
            )

    def _end_round(self) -> None:
        outcomes = [self.outcomes[planned.image, self.attempt] for planned in self.wanted]
        reasons = [outcome.reason for outcome in outcomes]
        digests = {outcome.digest for outcome in self.kept.values()}
        for place, outcome in enumerate(outcomes):
            if outcome.digest is not None:
                if outcome.digest in digests:
                    reasons[place] = DUPLICATE
                digests.add(outcome.digest)
        filters, scored, hashed = self._settings.filters, set[int](), set[int]()
        if filters.quality is not None:
            scored = self._compare(outcomes, reasons, LOW_SCORE, self._worst)
        self._reject_partners(reasons)  # before the hashes of those that stay are compared
        if filters.hashed:
            hashed = self._compare(outcomes, reasons, NEAR_DUPLICATE, self._alike)
            self._reject_partners(reasons)
            self._remember(outcomes, reasons)
        again = []
        for place, (planned, outcome, reason) in enumerate(zip(self.wanted, outcomes, reasons, strict=True)):
            if reason is None:
                self.kept[planned.image] = outcome
                continue
            self._rejected.setdefault(planned.image, []).append(reason)
            took_part = Measured(
                hash=outcome.hash if place in hashed else None, score=outcome.score if place in scored else None
            )
            self._measured.setdefault(planned.image, []).append(took_part if filters.by_share else Measured())
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

    def _compare(
        self,
        outcomes: Sequence[Outcome],
        reasons: list[str | None],
        reason: str,
        bad: Callable[[Group, Sequence[Outcome]], Iterable[bool]],
    ) -> set[int]:
        """Gives the bad images of each group a reason. Returns the places of those that took part.

        An image that an earlier call has rejected takes part if it did so then: what was measured tells.
        """
        groups: dict[Group, list[int]] = {}
        for place, outcome in enumerate(outcomes):
            measured = outcome.score if reason == LOW_SCORE else outcome.hash
            if measured is not None and (outcome.reason is not None or reasons[place] is None):
                groups.setdefault(self.wanted[place].group, []).append(place)
        for group, places in groups.items():
            for place, rejected in zip(places, bad(group, [outcomes[place] for place in places]), strict=True):
                reasons[place] = reasons[place] or (reason if rejected else None)
        return {place for places in groups.values() for place in places}

    def _worst(self, group: Group, outcomes: Sequence[Outcome]) -> list[bool]:
        """Which of them score less than what the share of the group's first images allows, and may be replaced."""
        check = self._settings.filters.quality
        assert check is not None
        scores = np.array([outcome.score for outcome in outcomes], dtype=np.float64)
        if group not in self._least:
            self._least[group] = float(np.sort(scores)[int(check.worst * len(scores))])
        return [
            bool(score < self._least[group]) and self.reasons_of(outcome.image).count(LOW_SCORE) < check.attempts
            for score, outcome in zip(scores, outcomes, strict=True)
        ]

    def _alike(self, group: Group, outcomes: Sequence[Outcome]) -> list[bool]:
        """Which of them are too close to an earlier one, or to a kept image of the group."""
        hashes = np.array([int(outcome.hash or "0", 16) for outcome in outcomes], dtype=np.uint64)
        if group not in self._hashes:
            self._hashes[group] = self._near_duplicates(hashes)
        found = copy.copy(self._hashes[group])
        if found is None:
            return [False] * len(hashes)
        most = self._settings.filters.most_near_duplicates
        return [
            not new and (most is None or self.reasons_of(outcome.image).count(NEAR_DUPLICATE) < most)
            for new, outcome in zip(found.add(hashes), outcomes, strict=True)
        ]

    def _remember(self, outcomes: Sequence[Outcome], reasons: Sequence[str | None]) -> None:
        """Adds the hashes of the images that are kept."""
        groups: dict[Group, list[int]] = defaultdict(list)
        for planned, outcome, reason in zip(self.wanted, outcomes, reasons, strict=True):
            if reason is None and outcome.hash is not None:
                groups[planned.group].append(int(outcome.hash, 16))
        for group, hashes in groups.items():
            if (found := self._hashes[group]) is not None:
                found.add(np.array(hashes, dtype=np.uint64))

    def _near_duplicates(self, hashes: npt.NDArray[np.uint64]) -> NearDuplicates | None:
        """An empty set for a group whose first images have these hashes; None: any bits reject too large a share."""
        filters = self._settings.filters
        if filters.near_duplicates_share is None:
            return NearDuplicates(filters.near_duplicates or 0)
        most, bits = filters.near_duplicates_share * len(hashes), -1
        while bits < MOST_BITS and (~NearDuplicates(bits + 1).add(hashes)).sum() <= most:
            bits += 1
        return NearDuplicates(bits) if bits >= 0 else None


def refuse_only_rejections(rejected: Counter[str], made: int) -> None:
    """Gives up on a model all of whose first images are rejected: of broken ones 10 tell, otherwise 100.

    Args:
        rejected: reason -> images, of a process in round 0.
        made: images, however many at a time.

    Raises:
        AimfairError: ``rejected`` holds all of them.
    """
    broken = sum(rejected[reason] for reason in _BROKEN)
    if rejected.total() == made >= (_FIRST_BROKEN if broken == made else _FIRST):
        raise AimfairError(f"the first {made} images were all rejected ({_counted(rejected)}); {_advice(rejected)}")


def _advice(rejected: Counter[str]) -> str:
    """What to try, by who rejected most images: the filters that are always on, or those of the settings."""
    if 2 * sum(rejected[reason] for reason in _BROKEN) >= rejected.total():
        return "try generate.dtype float32 or bfloat16, another generate.model or more steps"
    wrong = ", if its classifier is wrong about these images," if any(map(values_in, rejected)) else ""
    return f"try looser generate.filters{wrong} or prompts and a generate.model that draw what they ask for"


def _counted(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} {number}" for reason, number in reasons.most_common())
