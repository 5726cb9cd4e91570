"""Statistics of a job, for the report: images by group and reason, and speed."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from aimfair.base.files import write_text
from aimfair.base.lines import read_record
from aimfair.base.settings import Record
from aimfair.diffusion.sampler import Comparison
from aimfair.generation.estimate import Estimate
from aimfair.generation.plan import Group
from aimfair.generation.reasons import PARTNER
from aimfair.generation.shown import Attribute, Confusion, confusions


class Speed(Record):
    """The time of the images made by one call of :meth:`aimfair.generation.job.Job.run`.

    Attributes:
        images: made by all processes, rejected ones included.
        seconds: from beginning to end, without loading models.
        sampling, filters: seconds in the sampler, and in filters that run beside it; mean over the processes. 0: not
            known, of images that a pool of processes has made.
        stalled: seconds that samplers waited for files; mean over the processes.
        processes: their number.
        parts: part of the sampler's work, as :data:`aimfair.diffusion.clock.PARTS` -> seconds; mean over the processes.
        encoding: seconds of threads beside the sampler that reduce, check and write images, summed over threads; mean
            over the processes.
        estimate: of the time left, made after the first batches of process 0; None: there were too few.
    """

    images: int
    seconds: float
    sampling: float
    filters: float
    stalled: float
    processes: int
    parts: dict[str, float] = Field(default={})
    encoding: float = 0.0
    estimate: Estimate | None = None

    @property
    def shares(self) -> dict[str, float]:
        """Of the time from beginning to end, in words -> share, in the order of the work; empty if not measured."""
        if not self.parts:
            return {}
        spent = {name.replace("_", " "): seconds for name, seconds in self.parts.items()}
        spent |= {"filters": self.filters, "waiting for files": self.stalled}
        spent["rest"] = max(0.0, self.seconds - sum(spent.values()))
        return {name: seconds / max(self.seconds, 1e-9) for name, seconds in spent.items()}


class GroupSummary(Record):
    """Images of the group (y, a): ``made``, or found in a folder, = ``kept`` + the sum of ``rejected``, by reason."""

    y: int
    a: int
    made: int
    kept: int
    rejected: dict[str, int]

    @property
    def failed(self) -> int:
        """Images that were rejected for what they show, not for a partner."""
        return self.made - self.kept - self.rejected.get(PARTNER, 0)

    @property
    def judged(self) -> int:
        """Images that were kept, or failed."""
        return self.kept + self.failed

    @property
    def rejection_rate(self) -> float:
        return self.failed / max(self.judged, 1)


class GenerationSummary(Record):
    """``generation.json`` of a run.

    Attributes:
        groups: in the order of (y, a).
        confusions: of the attributes that were checked.
        speed: of the last call that made images, which after a stop made only the rest; None: not known.
        folder: where images were imported from; None: they were generated here.
        comparison: of the settings that trade likeness for speed with the plain model; None: there were none.
    """

    groups: list[GroupSummary]
    confusions: list[Confusion] = Field([])
    speed: Speed | None = None
    folder: str | None = None
    comparison: Comparison | None = None

    @property
    def made(self) -> int:
        return sum(group.made for group in self.groups)

    @property
    def kept(self) -> int:
        return sum(group.kept for group in self.groups)

    @property
    def rejected(self) -> Counter[str]:
        """Reason -> images."""
        return sum((Counter(group.rejected) for group in self.groups), Counter())

    @classmethod
    def of(
        cls,
        kept: Iterable[Group],
        rejected: Iterable[tuple[Group, str]],
        checked: Sequence[Attribute] = (),
        **others: Any,
    ) -> Self:
        """Counts images.

        Args:
            kept: the group of each image kept; every group has some.
            rejected: the group of each other image, and why it is not kept.
            checked: attributes that the filters check.
            others: speed, folder, comparison.
        """
        counts, rejected = Counter(kept), list(rejected)
        reasons: dict[Group, Counter[str]] = {group: Counter() for group in sorted(counts)}
        for group, reason in rejected:
            reasons[group][reason] += 1
        groups = [
            GroupSummary(
                y=y, a=a, made=counts[y, a] + found.total(), kept=counts[y, a], rejected=dict(sorted(found.items()))
            )
            for (y, a), found in reasons.items()
        ]
        return cls(groups=groups, confusions=confusions(sorted(counts), counts, rejected, checked), **others)

    def save(self, path: Path) -> None:
        write_text(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """What :meth:`save` wrote.

        Raises:
            AimfairError: the file is damaged.
        """
        return read_record(path, cls, "remove it; the report works without")
