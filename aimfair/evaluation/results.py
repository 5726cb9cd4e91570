"""results.json: the metrics of every method of a run, with the counts they are computed from.

The classes below are the schema. Arrays over groups are [A][Y]: protected value, then target class, in the order of
``protected_names`` and ``target_names``. ``metric`` stands for a name in :data:`aimfair.evaluation.metrics.METRICS`,
and ``score`` for one in :data:`aimfair.evaluation.scores.SCORES`.
Undefined values are NaN, null in the file. It holds no times or dates: the same predictions give the same bytes.
"""

import json
import math
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError

from aimfair.base.errors import AimfairError
from aimfair.base.files import write_text
from aimfair.base.settings import Record, first_fault

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
Interval = tuple[Number, Number]
Metrics = dict[str, Number]


SCHEMA_VERSION: Final = 4
"""1 had no scores, attributes, intersections and reads_groups; 2 had uncorrected intervals, and no metric of the
non-empty groups; 3 called support deciding_images."""


class ScoreResult(Record):
    """Score -> its value for all test images, for those of each protected value [A], and their largest minus smallest.

    See :mod:`aimfair.evaluation.scores`.
    """

    overall: Metrics
    by_value: dict[str, list[Number]]
    gap: Metrics


class SeedResult(Record):
    """One model: a method at one seed.

    Attributes:
        counts: [A][Y][K], test images of (a, y) predicted as k.
        overall: metric -> value. interval: the same, bootstrap over the test images.
        by_group: [A][Y], accuracy.
        worst_group: (y, a); None if a group is empty.
        scores: None without probabilities.
    """

    seed: int
    counts: list[list[list[int]]]
    overall: Metrics
    interval: dict[str, Interval]
    by_group: list[list[Number]]
    worst_group: tuple[int, int] | None
    scores: ScoreResult | None = None


class GroupResult(Record):
    """Accuracies of the groups over the seeds, [A][Y].

    Attributes:
        std: over the seeds, ddof 1.
        interval: Wilson's, at the number of test images of the group, however many seeds the mean is of.
    """

    mean: list[list[Number]]
    std: list[list[Number]]
    interval: list[list[Interval]]


class Difference(Record):
    """One metric of a method minus that of another, paired by seed and by image.

    Attributes:
        mean: over the seeds.
        over_images: bootstrap of the test images, the same replicates for both methods.
        over_seeds: Student's t over the differences of the seeds; NaN with one seed.
        support: the fewest test images behind the metric, see :func:`aimfair.evaluation.metrics.support`; None for
            metrics that depend on no single group.
    """

    mean: Number
    over_images: Interval
    over_seeds: Interval
    support: int | None = None


class MethodSummary(Record):
    """A method over the seeds, for one grouping of the test images.

    Attributes:
        mean: metric -> mean over the seeds. std: the same, ddof 1. Metrics that need an empty group are NaN;
            worst_present_group_accuracy skips empty groups.
        of_mean_rates: metrics of the seed-averaged rates, as some papers report; their worst group is optimistic.
        versus: other method -> metric -> this method minus the other.
        scores_mean: over the seeds; None without probabilities. scores_std: the same, ddof 1.
    """

    mean: Metrics
    std: Metrics
    of_mean_rates: Metrics
    by_group: GroupResult
    versus: dict[str, dict[str, Difference]]
    scores_mean: ScoreResult | None = None
    scores_std: ScoreResult | None = None


class MethodResult(MethodSummary):
    """A method in the groups of the protected attribute, compared with the biased model and the default method.

    Attributes:
        density: selected share of the weights, mean over the seeds; None where nothing is selected.
        reads_groups: the training of the method reads the protected attribute of real images.
        interval: metric -> of the mean, bootstrap of the test images, bias-corrected.
    """

    density: float | None
    reads_groups: bool = False
    seeds: list[SeedResult]
    interval: dict[str, Interval]

    def of_seed(self, seed: int) -> SeedResult:
        return next(one for one in self.seeds if one.seed == seed)


class AuditMethod(MethodSummary):
    """A method in the groups of another attribute; only the default method is compared, with the biased model.

    Attributes:
        worst_present_group: (y, a) of the lowest seed-averaged accuracy among the non-empty groups.
    """

    worst_present_group: tuple[int, int] | None


class Audit(Record):
    """The test images grouped by another attribute, or by the protected one and another.

    Its A is the number of ``value_names``, in whose order all arrays are. A metric that needs an empty group is NaN;
    only ``worst_present_group_accuracy`` skips empty groups.

    Attributes:
        test_images: [A][Y].
        cautions: sentences that name the empty and the small groups.
    """

    value_names: list[str]
    test_images: list[list[int]]
    cautions: list[str]
    methods: dict[str, AuditMethod]

    @property
    def groups(self) -> list[tuple[int, int]]:
        """Every (y, a), class by class."""
        return [(y, a) for y in range(len(self.test_images[0])) for a in range(len(self.test_images))]

    @property
    def empty(self) -> int:
        """How many groups have no test images."""
        return _empty(self.test_images)


def _empty(test_images: list[list[int]]) -> int:
    return sum(size == 0 for row in test_images for size in row)


class Results(Record):
    """A whole run.

    Attributes:
        confidence: of every interval. replicates: of the bootstrap.
        test_images: [A][Y].
        small_group: groups with fewer test images are flagged.
        cautions: sentences on empty and small groups.
        methods: the biased model first, then the methods as configured.
        bins: of the calibration error.
        attributes: name -> the groups of a further attribute. intersections: the same crossed with the protected
            attribute, except for attributes that the protected one is made of.
    """

    schema_version: Literal[4] = SCHEMA_VERSION
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
    bins: int
    attributes: dict[str, Audit] = Field({})
    intersections: dict[str, Audit] = Field({})

    @property
    def groups(self) -> list[tuple[int, int]]:
        """Every (y, a), class by class."""
        return [(y, a) for y in range(len(self.target_names)) for a in range(len(self.protected_names))]

    @property
    def empty(self) -> int:
        """How many groups have no test images."""
        return _empty(self.test_images)

    def group_name(self, y: int, a: int) -> str:
        return f"{self.target_names[y]} · {self.protected_names[a]}"

    def save(self, path: Path) -> None:
        """Replaces ``path``."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what :meth:`save` wrote.

        Raises:
            AimfairError: there is no such file, it is of another schema version, or of none.
        """
        again = f"aimfair evaluate --run {path.parent}"
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise AimfairError(f"{path}: no results yet; first: {again}") from error
        if (found := _version(content)) not in (None, SCHEMA_VERSION):
            raise AimfairError(
                f"{path}: results of schema version {found}, this aimfair reads {SCHEMA_VERSION};"
                f" make it again from the models: {again}"
            )
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            raise AimfairError(f"{path}: {first_fault(error, 'the whole')}; remove it and do: {again}") from error


def _version(content: bytes) -> object:
    """The schema version a file states; None if it states none or cannot be parsed."""
    try:
        found = json.loads(content)
    except ValueError:
        return None
    return found.get("schema_version") if isinstance(found, dict) else None
