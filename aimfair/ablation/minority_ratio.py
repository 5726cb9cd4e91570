"""The minority ratio of the biased synthetic set, from strong bias to none."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from aimfair.ablation import options
from aimfair.ablation.options import Options, shares
from aimfair.ablation.outcomes import Findings, Outcomes, sweep
from aimfair.ablation.plan import FOLDER, Arm, Names, Parent, Plan, available_images, from_parent, variant
from aimfair.base.errors import AimfairError
from aimfair.config import Config
from aimfair.data.biased_subset import group_sizes, largest_total

VALUES = (1 / 9, 1 / 4, 1 / 2, 1.0)


@dataclass(frozen=True)
class Request(options.Request):
    values: list[float]


def read(options: Options, config: Config) -> Request:
    """``--method`` and ``--values``: ratios of a minority to a majority group."""
    options.only("minority-ratio", "method", "values")
    return Request(*options.method_of(config), shares("--values", options.values, VALUES))


def plan(parent: Parent, request: Request) -> Plan:
    config, names = parent.config, Names(parent.config)
    name = names.add(request.method, request.tune)
    total, notes = _total(parent, request.values)
    groups, arms = {}, []
    for value in request.values:
        group = f"ratio-{ratio(value)}".replace("/", "-").replace(".", "_")  # distinct if the labels are
        settings = from_parent(parent, minority_ratio=value, biased_total=total)
        groups[group] = variant(config, names.methods, name, generate=settings)
        facts = {"minority ratio": value, "biased images": total}
        arms.append(Arm(f"ratio {ratio(value)}", name, group, x=value, facts=facts))
    reference = min(arms, key=lambda arm: abs((arm.x or 0) - config.data.minority_ratio)).label
    return Plan(
        title=f"Minority ratio of the biased synthetic set, {request.method}",
        question="The ratio of a minority to a majority group in the biased synthetic set; real images, biased models"
        " and the number of balanced images are those of the run.",
        groups=groups,
        arms=arms,
        reference=reference,
        notes=[
            *notes,
            "The balanced set is drawn again where the sizes of the two sets require it.",
        ],
    )


def findings(parent: Parent, request: Request, outcomes: Outcomes) -> Findings:
    return sweep(outcomes, "minority / majority", ratio)


def ratio(value: float) -> str:
    """A ratio as a simple fraction if it is one, such as 1/9."""
    nice = Fraction(value).limit_denominator(20)
    return f"{nice.numerator}/{nice.denominator}" if abs(float(nice) - value) < 1e-6 and nice != 1 else f"{value:.3g}"


def _total(parent: Parent, values: list[float]) -> tuple[int, list[str]]:
    """The size of the biased set, the same for all arms: as large as the available images allow; and notes."""
    settings, majority = parent.config.generate, parent.config.data.majority
    if FOLDER in parent.flags:
        return settings.biased_total, []
    counts = available_images(parent)
    free = counts - (settings.balanced_per_group if settings.disjoint else 0)
    most = min(largest_total(majority, np.maximum(free, 0), value) for value in values)
    total = min(settings.biased_total, most)
    smallest = min(int(group_sizes(majority, counts.shape[1], value, total).min()) for value in values)
    if smallest < 1:
        raise AimfairError(
            f"{parent.run.synthetic}: its groups have {counts.min()} to {counts.max()} images,"
            f" {settings.balanced_per_group} of them in the balanced set; too few for a biased set without an empty"
            " group. Lower --generate.balanced_per_group, use values closer to that of the run, or generate new images"
            f" with --{FOLDER} null --generate.biased_total N"
        )
    if total < parent.config.sensitivity.batch_size:
        raise AimfairError(
            f"{parent.run.synthetic}: its images allow biased sets of {total}, smaller than a batch of sensitivity;"
            f" lower --generate.balanced_per_group, or set --sensitivity.batch_size {total}"
        )
    notes = []
    if total < settings.biased_total:
        notes.append(
            f"Every biased set has {total} images instead of {settings.biased_total}: the run has no more for the"
            " groups that need them, and the sets must be of one size to be comparable. A lower"
            " --generate.balanced_per_group or --generate.disjoint false frees more."
        )
    return total, notes
