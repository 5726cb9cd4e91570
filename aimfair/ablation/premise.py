"""The premise of the method: gradients predict which weights reduce the bias when tuned.

Each block of the model is tuned alone. What the gradients predict of a block is compared with the effect of tuning it
on equalized odds, by Spearman's rank correlation over the blocks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aimfair.ablation import variants
from aimfair.ablation.blocks import blocks_of
from aimfair.ablation.options import Options, Request, checked
from aimfair.ablation.outcomes import Figure, Findings, Outcomes
from aimfair.ablation.plan import ONLY_GROUP, Arm, Names, Parent, Plan, variant
from aimfair.base.errors import AimfairError, ConfigError
from aimfair.base.seeds import generator
from aimfair.config import Config
from aimfair.evaluation.intervals import percentile, student_t
from aimfair.methods.tune import FAIR, OF_TUNING, Tune, select_mask
from aimfair.report import charts, wording
from aimfair.run.directory import Run
from aimfair.selective.selection import names_under
from aimfair.selective.sensitivity import Sensitivity
from aimfair.selective.statistics import domain_criterion_of
from aimfair.stages.select import sensitivity_of
from aimfair.training.models import load_model

Values = npt.NDArray[np.float64]

FEW = 8
"""With fewer blocks a rank correlation is hardly informative."""

PREDICTIONS = {
    "selected": ("Selected share of the block", "share of the block that the method selects"),
    "ratio": ("Bias score over domain score", "mean bias score over mean domain score"),
    "bias": ("Bias score", "mean bias score"),
    "domain": (
        "Domain score (negative expected)",
        "mean domain score (the method expects a negative correlation)",
    ),
}
"""Predictions for a block from the gradients -> (title, description); the first is the test of the premise."""

_METRIC = "eo_mean"


def read(options: Options, config: Config) -> Request:
    """``--method``."""
    options.only("premise", "method")
    name, method = options.method_of(config)
    if method.rule == "all":
        raise ConfigError(f"--method: {name!r} selects every block entirely and so predicts nothing; name another")
    return Request(name, method)


def plan(parent: Parent, request: Request) -> Plan:
    config, names, method = parent.config, Names(parent.config), request.tune
    common = {key: getattr(method, key) for key in OF_TUNING}
    arms = []
    blocks = _blocks(variants.with_gradients(parent))
    for block, modules in blocks.items():
        alone = checked({"rule": "blocks", "blocks": modules} | common)
        arms.append(Arm(block, names.add(f"only_{block}", alone), facts={}))
    if len(arms) < 3:
        raise AimfairError(f"ablate premise: the model has {len(arms)} blocks; a rank correlation needs at least 3")
    notes = [
        "All blocks share one learning rate, and differ in size, kind and depth: a correlation need not be due to the"
        " gradients alone.",
    ]
    if len(arms) < FEW:
        notes.append(f"{len(arms)} blocks are too few: with fewer than {FEW} a rank correlation is hardly ever clear.")
    return Plan(
        title=f"The premise of {request.method}",
        question="Each block of the model tuned alone, with all of its weights: do the gradients predict the effect on"
        " equalized odds?",
        groups={ONLY_GROUP: variant(config, names.methods, arms[0].method)},
        arms=arms,
        reference=None,
        notes=notes,
    )


def findings(parent: Parent, request: Request, outcomes: Outcomes) -> Findings:
    results, method = outcomes.results, request.tune
    biased = {one.seed: one.overall[_METRIC] for one in outcomes.biased.seeds}
    measured = np.array([[biased[s.seed] - s.overall[_METRIC] for s in one.result.seeds] for one in outcomes.arms])
    predicted = _predicted(variants.with_gradients(parent), request.method, method, results.seeds)
    agreements = {
        name: agreement(values, measured, results.confidence, results.replicates, generator("premise", name))
        for name, values in predicted.items()
    }
    labels = [one.arm.label for one in outcomes.arms]
    columns = {
        "selected share": [wording.percent(value) for value in predicted["selected"].mean(axis=1)],
        "ratio score": [f"{value:.3g}" for value in predicted["ratio"].mean(axis=1)],
        "gain in EO": [wording.points(value) for value in measured.mean(axis=1)],
    }
    return Findings(
        _figures(labels, predicted, measured, agreements, results.confidence),
        _sentences(agreements, len(labels), len(results.seeds), method.criterion),
        {name: dict(zip(labels, cells, strict=True)) for name, cells in columns.items()},
        data={
            "blocks": labels,
            "seeds": results.seeds,
            "predicted": {name: values.tolist() for name, values in predicted.items()},
            "measured_gain_in_eo_mean": measured.tolist(),
            "spearman": {name: one.as_dict() for name, one in agreements.items()},
        },
    )


def _figures(
    labels: Sequence[str],
    predicted: Mapping[str, Values],
    measured: Values,
    agreements: Mapping[str, "Agreement"],
    confidence: float,
) -> list[Figure]:
    """A scatter chart of each prediction [blocks, seeds] against the measured gain [blocks, seeds]."""
    intervals = [student_t(row, confidence).tolist() for row in measured]
    figures = []
    for name, values in predicted.items():
        means = zip(values.mean(axis=1), measured.mean(axis=1), labels, intervals, strict=True)
        chart = charts.scatter(
            [charts.Point(float(x), float(y), label, "after", *interval) for x, y, label, interval in means],
            zero=True,
            x_name="predicted",
            y_name="gain in EO, points",
            x_format=charts.share if name == "selected" else charts.number,
            y_format=lambda value: charts.number(100 * value),
        )
        caption = (
            "One point per block, mean over the seeds; bars are intervals over the seeds, clipped at the edge."
            f" {str(agreements[name]).capitalize()}."
        )
        figures.append(Figure(PREDICTIONS[name][0], caption, chart))
    return figures


def _sentences(agreements: Mapping[str, "Agreement"], blocks: int, seeds: int, criterion: str) -> list[str]:
    main, *others = agreements
    listed = "; ".join(f"{PREDICTIONS[name][1]}: {agreements[name]}" for name in others)
    return [
        f"{agreements[main].sentence} The {PREDICTIONS[main][1]} against the gain in equalized odds, over {blocks}"
        f" blocks and {seeds} seed{'s' if seeds > 1 else ''}: {agreements[main]}.",
        f"That is the test. For comparison, scores of the criterion {criterion}: {listed}.",
    ]


def _blocks(run: Run) -> dict[str, list[str]]:
    model = load_model(run.baseline(run.config.seeds[0]), run.config.model)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return blocks_of(names, least=FEW)


def _predicted(run: Run, name: str, method: Tune, seeds: list[int]) -> dict[str, Values]:
    """Prediction -> [blocks, seeds], from the gradients of ``run``."""
    blocks = list(_blocks(run).values())
    # one seed at a time, as sensitivity takes several times the model's memory
    of_seeds = [predictions(sensitivity_of(run, seed), name, method, seed, blocks) for seed in seeds]
    return {prediction: np.array([of[prediction] for of in of_seeds]).T for prediction in PREDICTIONS}


def predictions(
    sensitivity: Sensitivity, name: str, method: Tune, seed: int, blocks: Sequence[Sequence[str]]
) -> dict[str, list[float]]:
    """Key of :data:`PREDICTIONS` -> value of each block, of which ``blocks`` lists the modules."""
    mask = select_mask(sensitivity, name, method, seed)
    bias, domain = _scores(sensitivity, method)
    found: dict[str, list[float]] = {prediction: [] for prediction in PREDICTIONS}
    for modules in blocks:
        of = [mask.index[tensor] for tensor in names_under(mask.names, modules)]
        numels = np.array([mask.numels[i] for i in of], dtype=np.float64)
        means = [float((numels * score[of]).sum() / numels.sum()) for score in (bias, domain)]
        found["selected"].append(sum(mask.nnz_per_tensor[i] for i in of) / numels.sum())
        found["bias"].append(means[0])
        found["domain"].append(means[1])
        found["ratio"].append(means[0] / means[1] if means[1] > 0 else 0.0)
    return found


def _scores(sensitivity: Sensitivity, method: Tune) -> list[Values]:
    """Mean bias and mean domain score of every tensor, over its elements or, for cosine, of the whole."""
    criterion = method.criterion
    domain = domain_criterion_of(criterion, method.domain_criterion)
    scores = []
    for contrast, one in (("bias", criterion), ("domain", domain)):
        source = (method.source or FAIR) if one in ("fisher", "magnitude") else None
        by_tensor = sensitivity.unit_scores(one, contrast=contrast, source=source, granularity="tensor")
        scores.append(np.array([score.double().item() for score in by_tensor.values()]))
    return scores


# -- rank correlation --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """
    Attributes:
        rho: Spearman's coefficient of the means over the seeds; NaN where one side is constant.
        low, high: percentile interval; NaN where it is undefined.
        blocks: n.
    """

    rho: float
    low: float
    high: float
    blocks: int

    @property
    def sentence(self) -> str:
        """The conclusion the interval supports."""
        if math.isnan(self.rho + self.low):
            return "Undefined: the blocks cannot be ranked."
        if self.low > 0:
            return "Sensitivity agrees with the measured effect."
        if self.high < 0:
            return "Sensitivity contradicts the measured effect."
        return "No evidence for or against agreement of sensitivity with the measured effect."

    def as_dict(self) -> dict[str, float | int | None]:
        values = {"rho": self.rho, "low": self.low, "high": self.high}
        return {**{key: None if math.isnan(value) else value for key, value in values.items()}, "n": self.blocks}

    def __str__(self) -> str:
        if math.isnan(self.rho):
            return "rank correlation undefined"
        interval = "" if math.isnan(self.low) else f" ({self.low:+.2f} to {self.high:+.2f})"
        return f"rank correlation {self.rho:+.2f}{interval}".replace("-", "\N{MINUS SIGN}")


def agreement(
    predicted: Values, measured: Values, confidence: float, replicates: int, random: np.random.Generator
) -> Agreement:
    """Spearman's rank correlation of predictions and measurements [blocks, seeds], with a bootstrap interval.

    A replicate draws blocks and, independently, seeds with replacement, and correlates the means over its seeds.
    Replicates in which one side is constant have no correlation and are omitted; with more than a tenth of them there
    is no interval.
    """
    blocks, seeds = measured.shape
    rho = float(spearman(predicted.mean(axis=1)[None], measured.mean(axis=1)[None])[0])
    rows = random.integers(blocks, size=(replicates, blocks, 1))
    columns = random.integers(seeds, size=(replicates, 1, seeds))
    found = spearman(predicted[rows, columns].mean(axis=2), measured[rows, columns].mean(axis=2))
    found = found[~np.isnan(found)]
    if math.isnan(rho) or len(found) < 0.9 * replicates:
        return Agreement(rho, math.nan, math.nan, blocks)
    low, high = percentile(found, confidence).tolist()
    return Agreement(rho, low, high, blocks)


def spearman(one: Values, other: Values) -> Values:
    """Spearman's coefficient along the last axis of [R, n]; NaN where one side is constant or holds NaN."""
    from scipy.stats import rankdata  # type: ignore[import-untyped]

    a, b = (rankdata(side, axis=-1) for side in (one, other))
    a, b = (side - side.mean(axis=-1, keepdims=True) for side in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a * b).sum(axis=-1) / np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1)))
