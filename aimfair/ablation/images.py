"""The number of balanced synthetic images."""

from dataclasses import dataclass

import numpy as np

from aimfair.ablation import options
from aimfair.ablation.options import Options, counts
from aimfair.ablation.outcomes import Findings, Outcomes, sweep
from aimfair.ablation.plan import FOLDER, Arm, Names, Parent, Plan, available_images, from_parent, variant
from aimfair.base.errors import ConfigError
from aimfair.config import Config
from aimfair.data.biased_subset import group_sizes
from aimfair.generation.plan import minority_ratio

SHARES = (1 / 12, 1 / 6, 1 / 3, 2 / 3, 1.0)
"""Of the run's own number: of 300 these are 25, 50, 100, 200 and 300."""


@dataclass(frozen=True)
class Request(options.Request):
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
            f"--values: found {values[0]}, expected at least {least}: {groups} groups of {values[0]} images are smaller"
            f" than a batch of sensitivity; use larger values, or --sensitivity.batch_size {groups * values[0]}"
        )
    return Request(*options.method_of(config), values)


def plan(parent: Parent, request: Request) -> Plan:
    config, names = parent.config, Names(parent.config)
    name = names.add(request.method, request.tune)
    _require_enough(parent, max(request.values))
    batches = _batches(config, min(request.values))
    groups, arms = {}, []
    for value in request.values:
        group = f"images-{value}"
        settings = from_parent(parent, balanced_per_group=value)
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
            f"Gradients of all arms are means over at most {batches} batches of each source, as many as the smallest"
            " arm has, so that the noise of the gradients is not varied. A run with all its images uses more.",
            "All arms train for the same number of epochs: fewer images also mean fewer steps. --finetune.epochs sets"
            " it for all arms.",
            "The biased synthetic set keeps its size; where the two sets are disjoint it is drawn again.",
        ],
    )


def findings(parent: Parent, request: Request, outcomes: Outcomes) -> Findings:
    return sweep(outcomes, "images per group", lambda value: f"{value:.0f}")


def _groups(config: Config) -> int:
    return len(config.prompts.targets) * len(config.prompts.protected)


def _batches(config: Config, fewest: int) -> int:
    """Batches of each source that even the arm with the fewest images has."""
    possible, wanted = fewest * _groups(config) // config.sensitivity.batch_size, config.sensitivity.batches
    return possible if wanted is None else min(possible, wanted)


def _require_enough(parent: Parent, wanted: int) -> None:
    settings, data = parent.config.generate, parent.config.data
    if FOLDER in parent.flags:
        return
    available = available_images(parent)
    needed = np.zeros_like(available)
    if settings.disjoint:
        needed = group_sizes(data.majority, available.shape[1], minority_ratio(settings, data), settings.biased_total)
    most = int((available - needed).min())
    if wanted > most:
        raise ConfigError(
            f"--values: found {wanted}, but the images of {parent.run.synthetic} allow {max(most, 0)} balanced ones of"
            f" each group besides the biased set; lower it, or generate new images with --{FOLDER} null"
        )
