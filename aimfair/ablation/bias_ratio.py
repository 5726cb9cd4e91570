"""The bias of the synthetic set that sensitivity is measured against, from strong to none."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from aimfair.ablation import pool, sweep
from aimfair.ablation.findings import Findings
from aimfair.ablation.options import Options, shares
from aimfair.ablation.outcomes import Outcomes
from aimfair.ablation.plan import Arm, Names, Parent, Plan, variant
from aimfair.base.errors import AimfairError
from aimfair.config import Config
from aimfair.data.bias import group_sizes, largest_total

VALUES = (1 / 9, 1 / 4, 1 / 2, 1.0)


@dataclass(frozen=True)
class Request:
    method: str
    values: list[float]


def read(options: Options, config: Config) -> Request:
    """``--method`` and ``--values``: sizes of a minority over a majority group."""
    options.only("bias-ratio", "method", "values")
    return Request(options.method_of(config), shares("--values", options.values, VALUES))


def plan(parent: Parent, request: Request) -> Plan:
    config, names = parent.config, Names(parent.config)
    name = names.add(request.method, config.methods[request.method])
    total, notes = _total(parent, request.values)
    groups, arms = {}, []
    for value in request.values:
        group = f"bias-{ratio(value)}".replace("/", "-").replace(".", "_")  # as unlike as the labels
        settings = pool.from_parent(parent, bias=value, biased_total=total)
        groups[group] = variant(config, names.methods, name, generate=settings)
        facts = {"bias": value, "biased images": total}
        arms.append(Arm(f"bias {ratio(value)}", name, group, x=value, facts=facts))
    reference = min(arms, key=lambda arm: abs((arm.x or 0) - config.data.bias)).label
    return Plan(
        title=f"Bias of the biased synthetic set, {request.method}",
        question="The size of a minority group over that of a majority group among the synthetic images that stand for"
        " the bias; real images, biased models and the number of balanced images are those of the run.",
        groups=groups,
        arms=arms,
        reference=reference,
        notes=[
            *notes,
            "Which images are balanced ones is drawn anew where the sizes of the two sets require it.",
        ],
    )


def findings(parent: Parent, request: Request, outcomes: Outcomes) -> Findings:
    return sweep.findings(outcomes, "minority over majority", ratio)


def ratio(value: float) -> str:
    """A bias as people write it, such as 1/9."""
    nice = Fraction(value).limit_denominator(20)
    return f"{nice.numerator}/{nice.denominator}" if abs(float(nice) - value) < 1e-6 and nice != 1 else f"{value:.3g}"


def _total(parent: Parent, values: list[float]) -> tuple[int, list[str]]:
    """The size of the biased set, one for all arms: as large as the images that there are allow."""
    settings, majority = parent.config.generate, parent.config.data.majority
    if pool.FLAG in parent.flags:
        return settings.biased_total, []
    there = pool.available(parent)
    free = there - (settings.balanced_per_group if settings.disjoint else 0)
    most = min(largest_total(majority, np.maximum(free, 0), value) for value in values)
    total = min(settings.biased_total, most)
    smallest = min(int(group_sizes(majority, there.shape[1], value, total).min()) for value in values)
    if smallest < 1:
        raise AimfairError(
            f"{parent.run.synthetic}: its groups have {there.min()} to {there.max()} images, of which"
            f" {settings.balanced_per_group} are balanced ones; too few for a biased set without an empty group. Use"
            " fewer --generate.balanced_per_group, values nearer to that of the run, or make new images with"
            f" --{pool.FLAG} null --generate.biased_total N"
        )
    if total < parent.config.sensitivity.batch_size:
        raise AimfairError(
            f"{parent.run.synthetic}: its images allow biased sets of {total}, fewer than a batch of sensitivity; use"
            f" fewer --generate.balanced_per_group, or --sensitivity.batch_size {total}"
        )
    notes = []
    if total < settings.biased_total:
        notes.append(
            f"Every biased set has {total} images instead of {settings.biased_total}: more than that the run has not"
            " made for the groups that need them, and sets of one size can be compared. More are free with fewer"
            " --generate.balanced_per_group, or with --generate.disjoint false."
        )
    return total, notes
