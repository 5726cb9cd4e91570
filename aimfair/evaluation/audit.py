"""The metrics once more, for the groups that further attributes make of the test images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from aimfair.base.seeds import generator
from aimfair.config import Config
from aimfair.data.images import Splits
from aimfair.data.settings import DataSettings
from aimfair.evaluation import fairness, over_seeds
from aimfair.evaluation.counts import Integers
from aimfair.evaluation.logits import Logits
from aimfair.evaluation.results import Audit, AuditMethod, Difference, ScoreResult
from aimfair.methods.method_settings import BIASED

SEPARATOR = " · "

_NAMED_ALONE = 4
"""More groups than this are named in one sentence."""


@dataclass(frozen=True)
class Partition:
    """A way to tell the test images apart.

    Attributes:
        names: of its A values. values: int64 [N], the value of each image.
    """

    names: tuple[str, ...]
    values: Integers

    def __and__(self, other: "Partition") -> "Partition":
        """Every combination of a value of this and a value of the other."""
        names = tuple(SEPARATOR.join(pair) for pair in product(self.names, other.names))
        return Partition(names, self.values * len(other.names) + other.values)


def partitions(data: DataSettings, splits: Splits) -> tuple[dict[str, Partition], dict[str, Partition]]:
    """By each further attribute of the test images, and by the protected one and it.

    Where the protected attribute is made of several (``data.intersect_with``), each of these is an attribute by itself
    too, but is not crossed with what it is a part of.

    Raises:
        ValueError: the images have other attributes than the splits name values of.
    """
    if set(splits.attribute_names) != set(splits.test.attributes):
        raise ValueError(
            f"test images with the attributes {sorted(splits.test.attributes)},"
            f" names of values of {sorted(splits.attribute_names)}"
        )
    protected = Partition(splits.protected_names, splits.test.protected)
    alone = {name: Partition(names, splits.test.attributes[name]) for name, names in splits.attribute_names.items()}
    factors = {data.protected, *data.intersect_with}
    return alone, {name: protected & partition for name, partition in alone.items() if name not in factors}


def audit(
    config: Config,
    splits: Splits,
    partition: Partition,
    predicted: Mapping[str, Sequence[Integers]],
    logits: Mapping[str, Sequence[Logits]] | None,
    *purpose: str,
) -> Audit:
    """Results for the groups (y, value of ``partition``).

    The default method is told apart from the biased model with paired replicates; the others are counted only.

    Args:
        predicted, logits: as of :func:`aimfair.evaluation.compare.compare`.
        purpose: names the random numbers.
    """
    settings, test, default = config.evaluate, splits.test, config.default_method
    values, targets = len(partition.names), len(splits.target_names)
    tables = {
        name: over_seeds.tables(test.target, partition.values, of_seeds, targets, values)
        for name, of_seeds in predicted.items()
    }
    replicates = over_seeds.replicates(
        test,
        partition.values,
        (values, targets),
        {name: predicted[name] for name in (BIASED, default)},
        settings.replicates,
        generator("evaluate", "audit", *purpose),
    )
    against_biased = over_seeds.difference(
        tables[default], tables[BIASED], replicates[default], replicates[BIASED], settings.confidence
    )
    sizes = tables[BIASED][..., 0].sum(axis=2)
    return Audit(
        value_names=list(partition.names),
        test_images=sizes.tolist(),
        cautions=cautions(splits.target_names, partition.names, sizes, settings.small_group),
        methods={
            name: _method(
                settings.confidence,
                counts,
                {BIASED: against_biased} if name == default else {},
                over_seeds.score_spread(
                    over_seeds.score_results(
                        None if logits is None else logits[name], test.target, partition.values, values, settings
                    )
                ),
            )
            for name, counts in tables.items()
        },
    )


def cautions(target_names: Sequence[str], value_names: Sequence[str], sizes: Integers, small_group: int) -> list[str]:
    """Sentences on the groups without and with few of the test images; ``sizes``: int64 [A, Y]."""
    names = {
        (a, y): f"{target}{SEPARATOR}{value}"
        for y, target in enumerate(target_names)
        for a, value in enumerate(value_names)
    }
    empty = [name for group, name in names.items() if sizes[group] == 0]
    small = {name: sizes[group] for group, name in names.items() if 0 < sizes[group] < small_group}
    if len(empty) > _NAMED_ALONE:
        sentences = [f"No test images of {_many(empty, sizes)}: every metric that needs them is undefined."]
    else:
        sentences = [f"No test images of the group {name}: every metric that needs it is undefined." for name in empty]
    if len(small) > _NAMED_ALONE:
        listed = _many([f"{name} ({size})" for name, size in small.items()], sizes)
        return [*sentences, f"Under {small_group} test images of {listed}: what is said of them is uncertain."]
    return sentences + [
        f"Only {size} test images of the group {name}: what is said of it is uncertain." for name, size in small.items()
    ]


def _many(groups: Sequence[str], sizes: Integers) -> str:
    return f"{len(groups)} of {sizes.size} groups, {'; '.join(groups)}"


def _method(
    confidence: float,
    counts: Integers,
    versus: dict[str, dict[str, Difference]],
    score_spread: tuple[ScoreResult | None, ScoreResult | None],
) -> AuditMethod:
    per_seed = {metric: of(counts) for metric, of in fairness.METRICS.items()}
    rates = counts.mean(axis=-1)  # every seed sees the same images: the rates of the mean counts are the mean rates
    return AuditMethod(
        mean={metric: values.mean().item() for metric, values in per_seed.items()},
        std={metric: over_seeds.std(values).item() for metric, values in per_seed.items()},
        of_mean_rates={metric: of(rates).item() for metric, of in fairness.METRICS.items()},
        by_group=over_seeds.group_result(counts, confidence),
        worst_present_group=fairness.worst_present_group(rates),
        versus=versus,
        scores_mean=score_spread[0],
        scores_std=score_spread[1],
    )
