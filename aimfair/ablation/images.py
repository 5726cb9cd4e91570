"""How many balanced synthetic images it takes."""

from dataclasses import dataclass

import numpy as np

from aimfair.ablation import pool, sweep
from aimfair.ablation.findings import Findings
from aimfair.ablation.options import Options, counts
from aimfair.ablation.outcomes import Outcomes
from aimfair.ablation.plan import Arm, Names, Parent, Plan, variant
from aimfair.base.errors import ConfigError
from aimfair.config import Config
from aimfair.data.bias import group_sizes
from aimfair.generation.plan import bias_of

SHARES = (1 / 12, 1 / 6, 1 / 3, 2 / 3, 1.0)
"""Of the run's own number; of 300 that is 25, 50, 100, 200 and 300."""


@dataclass(frozen=True)
class Request:
    method: str
    values: list[int]


def read(options: Options, config: Config) -> Request:
    """``--method`` and ``--values``: balanced images of each group."""
    options.only("images", "method", "values")
    own, groups = config.generate.balanced_per_group, _groups(config)
    least = -(-config.sensitivity.batch_size // groups)
    default = sorted({value for share in SHARES if (value := round(own * share)) >= least} | {own})
    values = counts("--values", options.values, default)
    if values[0] < least:
        raise ConfigError(
            f"--values: found {values[0]}, expected at least {least}: {groups} groups of {values[0]} images are fewer"
            f" than a batch of sensitivity; ask for more, or for --sensitivity.batch_size {groups * values[0]}"
        )
    return Request(options.method_of(config), values)


def plan(parent: Parent, request: Request) -> Plan:
    config, names = parent.config, Names(parent.config)
    name = names.add(request.method, config.methods[request.method])
    _require_enough(parent, max(request.values))
    batches = _batches(config, min(request.values))
    groups, arms = {}, []
    for value in request.values:
        group = f"images-{value}"
        settings = pool.from_parent(parent, balanced_per_group=value)
        groups[group] = variant(config, names.methods, name, generate=settings, sensitivity={"batches": batches})
        steps = -(-value * _groups(config) // config.finetune.batch_size)
        facts = {"images per group": value, "steps per epoch": steps}
        arms.append(Arm(f"{value} per group", name, group, x=float(value), facts=facts))
    return Plan(
        title=f"Number of balanced synthetic images, {request.method}",
        question="The same pipeline with fewer balanced synthetic images of each group, drawn from those of the run.",
        groups=groups,
        arms=arms,
        reference=arms[-1].label,
        notes=[
            f"The gradients of all are means of at most {batches} batches of each source, as many as the fewest images"
            " give: how well they are estimated is not varied. A run with all its images takes more.",
            "Epochs are as many for all, so that fewer images also mean fewer steps; --finetune.epochs changes that for"
            " all of them.",
            "The biased synthetic set keeps its size; where the two sets share no image it is drawn anew.",
        ],
    )


def findings(parent: Parent, request: Request, outcomes: Outcomes) -> Findings:
    return sweep.findings(outcomes, "images per group", lambda value: f"{value:.0f}")


def _groups(config: Config) -> int:
    return len(config.prompts.targets) * len(config.prompts.protected)


def _batches(config: Config, fewest: int) -> int:
    """Batches of each source that the arm with the fewest images can give, too."""
    possible, wanted = fewest * _groups(config) // config.sensitivity.batch_size, config.sensitivity.batches
    return possible if wanted is None else min(possible, wanted)


def _require_enough(parent: Parent, wanted: int) -> None:
    settings, data = parent.config.generate, parent.config.data
    if pool.FLAG in parent.flags:
        return
    there = pool.available(parent)
    needed = np.zeros_like(there)
    if settings.disjoint:
        needed = group_sizes(data.majority, there.shape[1], bias_of(settings, data), settings.biased_total)
    most = int((there - needed).min())
    if wanted > most:
        raise ConfigError(
            f"--values: found {wanted}, but the images of {parent.run.synthetic} allow {max(most, 0)} balanced ones of"
            f" each group beside the biased set; ask for fewer, or make new ones with --{pool.FLAG} null"
        )
