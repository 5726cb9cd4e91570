"""How a job went: images by group and reason, and speed. What the report shows of it."""

from collections import Counter
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from aimfair.base.errors import AimfairError
from aimfair.base.files import write_text
from aimfair.generation.job import Job, Speed


class GroupSummary(BaseModel):
    """Images of the group (y, a): ``made``, or found, = ``kept`` + the sum of ``rejected``, by reason."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    y: int
    a: int
    made: int
    kept: int
    rejected: dict[str, int]


class GenerationSummary(BaseModel):
    """``generation.json`` of a run.

    Attributes:
        groups: in the order of (y, a).
        speed: of the last call that made images; after a stop it tells of what came then. None: nobody knows.
        folder: where images that were made elsewhere were copied from; None: they were made here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    groups: list[GroupSummary]
    speed: Speed | None
    folder: str | None = None

    @classmethod
    def of(cls, job: Job) -> Self:
        rejected: dict[tuple[int, int], Counter[str]] = {(planned.y, planned.a): Counter() for planned in job.plan}
        kept = Counter((planned.y, planned.a) for planned in job.plan)
        for planned, reason in job.rejections:
            rejected[planned.y, planned.a][reason] += 1
        groups = [
            GroupSummary(
                y=y, a=a, made=kept[y, a] + reasons.total(), kept=kept[y, a], rejected=dict(sorted(reasons.items()))
            )
            for (y, a), reasons in sorted(rejected.items())
        ]
        return cls(groups=groups, speed=job.speed)

    def save(self, path: Path) -> None:
        write_text(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """What :meth:`save` wrote.

        Raises:
            AimfairError: the file is damaged.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise AimfairError(
                f"{path}: damaged: {error.errors(include_url=False)[0]['msg']}; remove it, the report will do without"
            ) from error
