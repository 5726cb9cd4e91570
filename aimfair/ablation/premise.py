"""The premise of the method: that gradients tell which weights, when tuned, mend the bias.

Each block of the model is tuned alone. What the gradients said of it beforehand is compared with what tuning it did to
equalized odds, by Spearman's rank correlation over the blocks.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aimfair.ablation import charts, model_blocks, rank, variants
from aimfair.ablation.findings import Figure, Findings
from aimfair.ablation.options import Options, checked, tuned
from aimfair.ablation.outcomes import Outcomes
from aimfair.ablation.plan import ONLY_GROUP, Arm, Names, Parent, Plan, variant
from aimfair.base.errors import AimfairError, ConfigError
from aimfair.base.seeds import generator
from aimfair.config import Config
from aimfair.evaluation.intervals import student_t
from aimfair.methods.tune import FAIR, Tune, select_mask
from aimfair.report import wording
from aimfair.run.directory import Run
from aimfair.selective.sensitivity import Sensitivity
from aimfair.selective.statistics import CONTRAST_CRITERIA
from aimfair.stages.select import sensitivity_of
from aimfair.training.models import load_model

FEW = 8
"""Blocks below which a rank correlation says next to nothing."""

PREDICTIONS = {
    "selected": "share of the block that the method selects",
    "ratio": "mean bias score over mean domain score",
    "bias": "mean bias score",
    "domain": "mean domain score (the method expects a negative correlation)",
}
"""What the gradients say of a block; the first is the method's own verdict, and the test of the premise."""

_TITLES = {
    "selected": "Selected share of the block",
    "ratio": "Bias score over domain score",
    "bias": "Bias score",
    "domain": "Domain score (negative expected)",
}

_METRIC = "eo_mean"


@dataclass(frozen=True)
class Request:
    method: str


def read(options: Options, config: Config) -> Request:
    """``--method``."""
    options.only("premise", "method")
    name = options.method_of(config)
    if tuned(config, name).rule == "all":
        raise ConfigError(f"--method: {name!r} selects all of every block, so that nothing is predicted; name another")
    return Request(name)


def plan(parent: Parent, request: Request) -> Plan:
    config, names = parent.config, Names(parent.config)
    method = tuned(config, request.method)
    common = {key: getattr(method, key) for key in ("lr", "epochs", "weight_decay", "batchnorm")}
    arms = []
    blocks = _blocks(variants.with_gradients(parent))
    for block, modules in blocks.items():
        alone = checked({"rule": "blocks", "blocks": modules} | common)
        arms.append(Arm(block, names.add(f"only_{block}", alone), facts={}))
    if len(arms) < 3:
        raise AimfairError(f"ablate premise: the model has {len(arms)} blocks; a rank correlation needs at least 3")
    notes = [
        "All blocks have one learning rate, and blocks differ in size, kind and depth: a correlation need not come from"
        " the gradients alone.",
    ]
    if len(arms) < FEW:
        notes.append(f"{len(arms)} blocks are too few: with less than {FEW} a rank correlation is hardly ever clear.")
    return Plan(
        title=f"The premise of {request.method}",
        question="Each block of the model tuned alone, all of its weights: does what the gradients said of the block"
        " agree with what that does to equalized odds?",
        groups={ONLY_GROUP: variant(config, names.methods, arms[0].method)},
        arms=arms,
        reference=None,
        notes=notes,
    )


def findings(parent: Parent, request: Request, outcomes: Outcomes) -> Findings:
    config, results = parent.config, outcomes.results
    seeds = results.seeds
    biased = {one.seed: one.overall[_METRIC] for one in outcomes.biased.seeds}
    measured = np.array([[biased[s.seed] - s.overall[_METRIC] for s in one.result.seeds] for one in outcomes.arms])
    predicted = _predicted(variants.with_gradients(parent), request.method, tuned(config, request.method), seeds)
    agreements = {
        name: rank.agreement(values, measured, results.confidence, results.replicates, generator("premise", name))
        for name, values in predicted.items()
    }
    labels = [one.arm.label for one in outcomes.arms]
    main = next(iter(PREDICTIONS))
    intervals = [tuple(student_t(row, results.confidence).tolist()) for row in measured]
    figures = [
        Figure(
            _TITLES[name],
            "A point is a block, mean over the seeds; bars are intervals over the seeds, cut at the edge."
            f" {str(agreements[name]).capitalize()}.",
            charts.scatter(
                [
                    charts.Point(float(x), float(y), label, "after", *pair)
                    for x, y, label, pair in zip(
                        values.mean(axis=1), measured.mean(axis=1), labels, intervals, strict=True
                    )
                ],
                zero=True,
                x_name="predicted",
                y_name="gain in EO, points",
                x_format=charts.percent if name == "selected" else charts.number,
                y_format=lambda value: charts.number(100 * value),
            ),
        )
        for name, values in predicted.items()
    ]
    columns = {
        "selected share": {
            label: f"{100 * value:.1f}%" for label, value in zip(labels, predicted[main].mean(axis=1), strict=True)
        },
        "ratio score": {
            label: f"{value:.3g}" for label, value in zip(labels, predicted["ratio"].mean(axis=1), strict=True)
        },
        "gain in EO": {
            label: wording.points(value) for label, value in zip(labels, measured.mean(axis=1), strict=True)
        },
    }
    criterion = tuned(config, request.method).criterion
    sentences = [
        f"{agreements[main].sentence} Of the {PREDICTIONS[main]} with the gain in equalized odds, over {len(labels)}"
        f" blocks and {len(seeds)} seed{'s' if len(seeds) > 1 else ''}: {agreements[main]}.",
        f"That is the test. Beside it, with scores of the criterion {criterion}: "
        f"{'; '.join(f'{PREDICTIONS[name]}: {agreements[name]}' for name in agreements if name != main)}.",
    ]
    data: dict[str, Any] = {
        "blocks": labels,
        "seeds": seeds,
        "predicted": {name: values.tolist() for name, values in predicted.items()},
        "measured_gain_in_eo_mean": measured.tolist(),
        "spearman": {name: one.as_dict() for name, one in agreements.items()},
    }
    return Findings(figures, sentences, columns, data=data)


def _blocks(run: Run) -> dict[str, list[str]]:
    model = load_model(run.baseline(run.config.seeds[0]), run.config.model)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return model_blocks.blocks(names, least=FEW)


def _predicted(run: Run, name: str, method: Tune, seeds: list[int]) -> dict[str, npt.NDArray[np.float64]]:
    """Prediction -> [blocks, seeds], of the gradients that ``run`` has."""
    blocks = list(_blocks(run).values())
    of_seeds = [_of_seed(run, name, method, seed, blocks) for seed in seeds]
    return {prediction: np.array([of[prediction] for of in of_seeds]).T for prediction in PREDICTIONS}


def _of_seed(run: Run, name: str, method: Tune, seed: int, blocks: list[list[str]]) -> dict[str, list[float]]:
    """Prediction -> value of each block. Sensitivity takes several times the memory of the model: one at a time."""
    sensitivity = sensitivity_of(run, seed)
    mask = select_mask(sensitivity, name, method, seed)
    bias, domain = _scores(sensitivity, method)
    found: dict[str, list[float]] = {prediction: [] for prediction in PREDICTIONS}
    for modules in blocks:
        of = [mask.index[tensor] for tensor in model_blocks.members(modules, mask.names)]
        numels = np.array([mask.numels[i] for i in of], dtype=np.float64)
        means = [float((numels * score[of]).sum() / numels.sum()) for score in (bias, domain)]
        found["selected"].append(sum(mask.nnz_per_tensor[i] for i in of) / numels.sum())
        found["bias"].append(means[0])
        found["domain"].append(means[1])
        found["ratio"].append(means[0] / means[1] if means[1] > 0 else 0.0)
    return found


def _scores(sensitivity: Sensitivity, method: Tune) -> list[npt.NDArray[np.float64]]:
    """Mean bias and mean domain score of every tensor, of its elements or, for cosine, as a whole."""
    criterion = method.criterion
    domain = method.domain_criterion or (criterion if criterion in CONTRAST_CRITERIA else "difference")
    scores = []
    for contrast, one in (("bias", criterion), ("domain", domain)):
        source = (method.source or FAIR) if one in ("fisher", "magnitude") else None
        by_tensor = sensitivity.unit_scores(one, contrast=contrast, source=source, granularity="tensor")
        scores.append(np.array([score.double().item() for score in by_tensor.values()]))
    return scores
