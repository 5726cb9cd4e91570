"""results.json: what every method of a run is worth, with the counts it was computed from.

The classes below are the schema. Arrays over groups are [A][Y]: protected value, then target class, in the order of
``protected_names`` and ``target_names``. ``metric`` stands for a name in :data:`aimfair.evaluation.fairness.METRICS`.
NaN, for what is undefined, is null in the file. It holds no times and no dates: the same predictions give the same
bytes.
"""

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from aimfair.errors import AimfairError
from aimfair.files import write_text

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
Interval = tuple[Number, Number]
Metrics = dict[str, Number]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SeedResult(_Part):
    """One model: a method at one seed.

    Attributes:
        counts: [A][Y][K], test images of (a, y) predicted as k.
        overall: metric -> value. interval: the same, bootstrap over the test images.
        by_group: [A][Y], accuracy.
        worst_group: (y, a); None if a group is empty.
    """

    seed: int
    counts: list[list[list[int]]]
    overall: Metrics
    interval: dict[str, Interval]
    by_group: list[list[Number]]
    worst_group: tuple[int, int] | None


class GroupResult(_Part):
    """Accuracies of the groups over the seeds, [A][Y].

    Attributes:
        std: over the seeds, ddof 1.
        interval: Wilson's, at the number of test images of the group, however many seeds the mean is of.
    """

    mean: list[list[Number]]
    std: list[list[Number]]
    interval: list[list[Interval]]


class Difference(_Part):
    """One metric of a method minus that of another, paired by seed and by image.

    Attributes:
        mean: over the seeds.
        over_images: bootstrap of the test images, the same replicates for both methods.
        over_seeds: Student's t over the differences of the seeds; NaN with one seed.
    """

    mean: Number
    over_images: Interval
    over_seeds: Interval


class MethodResult(_Part):
    """A method over the seeds.

    Attributes:
        density: selected share of the weights, mean over the seeds; None for the biased model.
        mean: metric -> mean over the seeds. std: the same, ddof 1. interval: of the mean, bootstrap of the test images.
        of_mean_rates: metrics of the seed-averaged rates, as some papers give them; their worst group is flattering.
        versus: other method -> metric -> this method minus the other. Every method is compared with the biased model
            and with the default method.
    """

    density: float | None
    seeds: list[SeedResult]
    mean: Metrics
    std: Metrics
    interval: dict[str, Interval]
    by_group: GroupResult
    of_mean_rates: Metrics
    versus: dict[str, dict[str, Difference]]


class Results(_Part):
    """A whole run.

    Attributes:
        confidence: of every interval. replicates: of the bootstrap.
        test_images: [A][Y].
        small_group: groups with fewer test images are flagged.
        cautions: sentences on empty and small groups.
        methods: the biased model first, then the methods as configured.
    """

    schema_version: Literal[1] = 1
    title: str
    target_names: list[str]
    protected_names: list[str]
    seeds: list[int]
    default_method: str
    confidence: float
    replicates: int
    small_group: int
    test_images: list[list[int]]
    cautions: list[str]
    methods: dict[str, MethodResult]

    @property
    def groups(self) -> list[tuple[int, int]]:
        """Every (y, a), class by class."""
        return [(y, a) for y in range(len(self.target_names)) for a in range(len(self.protected_names))]

    def group_name(self, y: int, a: int) -> str:
        return f"{self.target_names[y]} · {self.protected_names[a]}"

    def save(self, path: Path) -> None:
        """Replaces ``path``."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what :meth:`save` wrote.

        Raises:
            AimfairError: there is no such file, or it is not of this schema.
        """
        again = f"aimfair evaluate --run {path.parent}"
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise AimfairError(f"{path}: no results yet; first: {again}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the whole"
            raise AimfairError(f"{path}: {where}: {first['msg']}; make it again: {again}") from error
