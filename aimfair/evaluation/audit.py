"""The metrics for further groupings of the test images: by other attributes, and by the protected one and another."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from aimfair.base.seeds import generator
from aimfair.data.images import Splits
from aimfair.evaluation import metrics
from aimfair.evaluation.metrics import Integers
from aimfair.evaluation.over_seeds import Grouping
from aimfair.evaluation.predictions import Logits
from aimfair.evaluation.results import Audit, AuditMethod
from aimfair.evaluation.scores import measure
from aimfair.evaluation.settings import EvaluateSettings
from aimfair.methods import BIASED

SEPARATOR = " · "

_NAMED_ALONE = 4
"""More groups than this share one sentence."""


@dataclass(frozen=True)
class Partition:
    """The test images by the values of an attribute.

    Attributes:
        names: of the A values. values: int64 [N], the value of each image.
    """

    names: tuple[str, ...]
    values: Integers

    def __and__(self, other: "Partition") -> "Partition":
        """Every combination of a value of this and a value of the other."""
        names = tuple(SEPARATOR.join(pair) for pair in product(self.names, other.names))
        return Partition(names, self.values * len(other.names) + other.values)


def partitions(factors: Collection[str], splits: Splits) -> tuple[dict[str, Partition], dict[str, Partition]]:
    """By each further attribute of the test images, and by its intersection with the protected one.

    Args:
        factors: attributes that the protected one is made of; they are not crossed with it.

    Raises:
        ValueError: the images have other attributes than ``splits`` has names of values for.
    """
    if set(splits.attribute_names) != set(splits.test.attributes):
        raise ValueError(
            f"test images with the attributes {sorted(splits.test.attributes)},"
            f" names of values of {sorted(splits.attribute_names)}"
        )
    protected = Partition(splits.protected_names, splits.test.protected)
    alone = {name: Partition(names, splits.test.attributes[name]) for name, names in splits.attribute_names.items()}
    return alone, {name: protected & partition for name, partition in alone.items() if name not in factors}


def audit(
    settings: EvaluateSettings,
    default_method: str,
    splits: Splits,
    partition: Partition,
    predicted: Mapping[str, Sequence[Integers]],
    logits: Mapping[str, Sequence[Logits]] | None,
    *purpose: str,
) -> Audit:
    """Results for the groups (y, value of ``partition``).

    Only the default method is compared with the biased model; of the others there are no replicates.

    Args:
        predicted, logits: as of :func:`aimfair.evaluation.compare.compare`.
        purpose: seeds the random numbers.
    """
    test, values = splits.test, len(partition.names)
    grouping = Grouping(
        test.target, partition.values, (values, len(splits.target_names)), predicted, clusters=test.clusters,
        confidence=settings.confidence, replicates=settings.replicates,
        generator=generator("evaluate", "audit", *purpose), resampled=(BIASED, default_method),
    )  # fmt: skip
    sizes = grouping.counts[BIASED][..., 0].sum(axis=2)
    methods = {}
    for name in predicted:
        scores = None
        if logits is not None:
            scores = [measure(one, test.target, partition.values, values, settings.bins) for one in logits[name]]
        rates = grouping.counts[name].mean(axis=-1)  # every seed sees the same images: these are the mean rates
        methods[name] = AuditMethod(
            of_mean_rates={metric: value.item() for metric, value in metrics.overall(rates).items()},
            worst_present_group=metrics.worst_present_group(rates),
            **grouping.summary(name, (BIASED,) if name == default_method else (), scores),
        )
    return Audit(
        value_names=list(partition.names),
        test_images=sizes.tolist(),
        cautions=cautions(splits.target_names, partition.names, sizes, settings.small_group),
        methods=methods,
    )


def cautions(target_names: Sequence[str], value_names: Sequence[str], sizes: Integers, small_group: int) -> list[str]:
    """Sentences on the empty and the small groups; ``sizes``: int64 [A, Y], test images."""
    names = {
        (a, y): f"{target}{SEPARATOR}{value}"
        for y, target in enumerate(target_names)
        for a, value in enumerate(value_names)
    }
    empty = [name for group, name in names.items() if sizes[group] == 0]
    small = {name: sizes[group] for group, name in names.items() if 0 < sizes[group] < small_group}
    if len(empty) > _NAMED_ALONE:
        sentences = [f"No test images in {_many(empty, sizes)}: metrics that need them are undefined."]
    else:
        sentences = [f"No test images in group {name}: metrics that need it are undefined." for name in empty]
    if len(small) > _NAMED_ALONE:
        listed = _many([f"{name} ({size})" for name, size in small.items()], sizes)
        return [*sentences, f"Under {small_group} test images in {listed}: their results are uncertain."]
    return sentences + [
        f"Only {size} test images in group {name}: its results are uncertain." for name, size in small.items()
    ]


def _many(groups: Sequence[str], sizes: Integers) -> str:
    return f"{len(groups)} of {sizes.size} groups, {'; '.join(groups)}"
