"""Every valid combination of criterion, rule and granularity, at one density."""

from dataclasses import dataclass
from typing import get_args

from aimfair.ablation import options, variants
from aimfair.ablation.options import Options, checked, shares, words
from aimfair.ablation.outcomes import Findings, Heat, Outcomes
from aimfair.ablation.plan import ONLY_GROUP, Arm, Names, Parent, Plan, variant
from aimfair.base.errors import AimfairError, ConfigError
from aimfair.config import Config
from aimfair.methods.tune import OF_TUNING, select_mask
from aimfair.report import wording
from aimfair.selective.choices import Criterion, Granularity
from aimfair.stages.select import sensitivity_of

RULES = ("top_k", "intersection", "ratio", "random")
"""Those with a density; ``random`` is the control and has no criterion."""


@dataclass(frozen=True)
class Request(options.Request):
    density: float
    criteria: list[str]
    rules: list[str]
    granularities: list[str]


def read(options: Options, config: Config) -> Request:
    """``--method`` (for all settings but the selection), ``--density``, and in ``--values`` criteria, rules and
    granularities; all of a kind if none of it is listed."""
    options.only("criteria", "method", "values", "density")
    kinds = (get_args(Criterion), RULES, get_args(Granularity))
    chosen = set(words("--values", options.values, [word for kind in kinds for word in kind]))
    picked = [[word for word in kind if word in chosen] or list(kind) for kind in kinds]
    name, method = options.method_of(config)
    density = shares("--density", options.density, [0.1 if method.density is None else method.density])
    if len(density) > 1:
        raise ConfigError(f"--density: found {options.density!r}, expected one")
    return Request(name, method, density[0], *picked)


def plan(parent: Parent, request: Request) -> Plan:
    config, names, own = parent.config, Names(parent.config), request.tune
    common = {key: getattr(own, key) for key in (*OF_TUNING, "freeze")}
    run, seed = variants.with_gradients(parent), config.seeds[0]
    sensitivity = sensitivity_of(run, seed)
    arms, left_out = [], []
    for rule, criterion, granularity in _combinations(request):
        label = " ".join(filter(None, (rule, criterion, granularity)))
        selection = {"rule": rule, "criterion": criterion or "difference", "granularity": granularity}
        try:  # a selection that fails with the gradients of the first seed fails with those of any
            method = checked({**selection, "density": request.density, "density_of": "weights", **common})
            select_mask(sensitivity, label, method, seed)
        except AimfairError as error:
            left_out.append(f"{label} ({str(error).removeprefix(f'methods.{label}: ')})")
            continue
        parent.run.interrupt.check()
        facts = {"rule": rule, "criterion": criterion, "granularity": granularity}
        arms.append(Arm(label, names.add(label.replace(" ", "_"), method), facts=facts))
    if not arms:
        raise AimfairError(f"ablate criteria: nothing can be selected: {'; '.join(left_out)}")
    reference = f"{request.method} as it is"
    arms.append(Arm(reference, names.add(request.method, own), facts={}))
    notes = [
        f"All have the learning rate of {request.method}. All rules, including the random control, take the fewest rows"
        f" or tensors that hold {100 * request.density:.4g}% of the weights; the last one can be large, and the column"
        " “tuned” has the resulting share, mean over the seeds.",
        *(f"Left out: {reason}." for reason in left_out),
    ]
    return Plan(
        title=f"Criteria, rules and granularities at density {request.density:.4g}",
        question=f"Only the selection of the weights varies; compared with {request.method} as it is in the run.",
        groups={ONLY_GROUP: variant(config, names.methods, arms[-1].method)},
        arms=arms,
        reference=reference,
        notes=notes,
    )


def findings(parent: Parent, request: Request, outcomes: Outcomes) -> Findings:
    grid = [one for one in outcomes.arms if one.arm.facts]
    better = [one.arm.label for one in grid if outcomes.verdict(one, "worst_group_accuracy") == "better"]
    worse = [one.arm.label for one in grid if outcomes.verdict(one, "worst_group_accuracy") == "worse"]
    uneven = [
        f"{one.arm.label} ({wording.percent(one.result.density)})"
        for one in grid
        if one.result.density is not None and one.result.density > _FAR * request.density
    ]
    sentences = [
        f"On worst-group accuracy {len(better)} of {len(grid)} are clearly better than {request.method} as it is and"
        f" {len(worse)} clearly worse, without a correction for multiple comparisons.",
        *([f"Clearly better: {wording.listing(better)}."] if better else []),
        *([f"Tuned well over {100 * request.density:.4g}%: {wording.listing(uneven)}."] if uneven else []),
    ]
    return Findings([], sentences, heats=[_heat(request, outcomes, metric) for metric in _SHOWN])


_FAR = 1.5
"""Multiple of the requested density above which an arm is reported."""

_SHOWN = {"worst_group_accuracy": True, "eo_mean": False, "accuracy": True}
"""Metrics of the heat tables -> whether a higher value is better."""


def _combinations(request: Request) -> list[tuple[str, str | None, str]]:
    """(rule, criterion, granularity); ``random`` has no criterion."""
    criteria: list[str | None] = [*request.criteria]
    return [
        (rule, criterion, granularity)
        for rule in request.rules
        for criterion in (criteria if rule != "random" else [None])
        for granularity in request.granularities
    ]


def _heat(request: Request, outcomes: Outcomes, metric: str) -> Heat:
    found = {tuple(one.arm.facts.values()): one.mean[metric] for one in outcomes.arms if one.arm.facts}
    rows = list(dict.fromkeys((rule, criterion) for rule, criterion, _ in _combinations(request)))
    values = [value for value in found.values() if value == value]
    low, high = min(values, default=0.0), max(values, default=1.0)

    def cell(rule: str, criterion: str | None, granularity: str) -> tuple[str, float] | None:
        value = found.get((rule, criterion, granularity))
        if value is None:
            return None
        shade = (value - low) / (high - low) if high > low else 0.0
        return wording.percent(value), shade if _SHOWN[metric] else 1 - shade

    return Heat(
        wording.LABELS[metric],
        "Mean over the seeds; a stronger colour is better. A dash is a combination that was left out.",
        request.granularities,
        [" · ".join(filter(None, row)) for row in rows],
        [[cell(*row, granularity) for granularity in request.granularities] for row in rows],
    )
