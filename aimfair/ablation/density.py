"""Accuracy against fairness over the share of tuned weights."""

from dataclasses import dataclass, replace

from aimfair.ablation import options
from aimfair.ablation.options import Options, changed, positive, shares, with_density
from aimfair.ablation.outcomes import METRICS, Figure, Findings, Outcome, Outcomes, versus_reference
from aimfair.ablation.plan import ONLY_GROUP, Arm, Names, Parent, Plan, full_method, variant
from aimfair.config import Config
from aimfair.methods import BIASED, MethodSettings
from aimfair.report import charts, wording

VALUES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)


@dataclass(frozen=True)
class Request(options.Request):
    densities: list[float]
    lrs: list[float]


def read(options: Options, config: Config) -> Request:
    """``--method``, ``--values`` (densities) and ``--lrs``."""
    options.only("density", "method", "values", "lrs")
    request = Request(
        *options.method_of(config),
        shares("--values", options.values, VALUES),
        positive("--lrs", options.lrs, ()),
    )
    with_density("density", request.method, request.tune, request.densities[0])
    return request


def plan(parent: Parent, request: Request) -> Plan:
    config, names, method = parent.config, Names(parent.config), request.tune
    arms = []
    lrs: list[float | None] = [*request.lrs] or [None]
    for density in request.densities:
        of_density = with_density("density", request.method, method, density)
        for lr in lrs:
            varied = of_density if lr is None else changed(of_density, lr=lr)
            label = f"{density:.4g}" if lr is None else f"{density:.4g}, lr {lr:.4g}"
            name = names.add(f"{request.method[:24]}_{label}", varied)
            facts = {"density": density, "lr": _lr(config, varied)}
            arms.append(Arm(label, name, x=density, facts=facts))
    full = full_method(config)
    reference = "full fine-tuning"
    arms.append(Arm(reference, names.add("full", full), facts={"density": None, "lr": _lr(config, full)}))
    notes = []
    if request.lrs:
        notes.append(
            "For each density the learning rate with the highest validation accuracy is marked chosen, and plotted."
            " Validation images are real and share the bias of the training set, and no group label is used: their"
            " accuracy can favour a model that hardly changed. Test images choose nothing. Full fine-tuning keeps its"
            " own learning rate; density 1 is full fine-tuning with each of the others."
        )
    else:
        notes.append(
            "All densities share one learning rate. Few weights often need a larger one than many, so this sweep can be"
            " unfair to small densities; --lrs tries several."
        )
    return Plan(
        title=f"Density of {request.method}",
        question=f"{request.method} ({method.rule}, {method.criterion}, {method.granularity}) with more or fewer"
        " weights tuned; full fine-tuning and the biased model for comparison.",
        groups={ONLY_GROUP: variant(config, names.methods, arms[-1].method)},
        arms=arms,
        reference=reference,
        notes=notes,
    )


def findings(parent: Parent, request: Request, outcomes: Outcomes) -> Findings:
    swept = [one for one in outcomes.arms if one.arm.x is not None]
    chosen = [_best([one for one in swept if one.arm.x == density]) for density in request.densities]
    full = next(one for one in outcomes.arms if one.arm.x is None)
    figures = []
    for metric, up in (("worst_group_accuracy", True), ("eo_mean", False)):
        points = [_point(one.arm.label, one.mean, metric, "after") for one in chosen]
        points.append(_point(full.arm.label, full.mean, metric, "train"))
        points.append(_point(BIASED, outcomes.biased.mean, metric, "before"))
        figures.append(
            Figure(
                f"Accuracy and {wording.lower_label(metric)}",
                "One point per density, mean over the seeds; the line joins the Pareto-optimal ones"
                f" ({'up' if up else 'down'} and right is better).",
                charts.scatter(
                    points, x_name="accuracy", y_name=wording.lower_label(metric), joined=charts.frontier(points, up=up)
                ),
            )
        )
    marks = {one.arm.label: "chosen" for one in chosen} if request.lrs else {}
    sentences = versus_reference(replace(outcomes, arms=[*chosen, full]), METRICS)
    return Findings(figures, sentences, {"choice": marks} if marks else {})


def _best(of_density: list[Outcome]) -> Outcome:
    """Highest validation accuracy, then lowest validation loss, then the lowest learning rate."""
    return max(of_density, key=lambda one: (one.validation_accuracy, -one.validation_loss))


def _point(label: str, mean: dict[str, float], metric: str, kind: str) -> charts.Point:
    return charts.Point(mean["accuracy"], mean[metric], label, kind)


def _lr(config: Config, method: MethodSettings) -> float:
    return config.finetune.lr if method.lr is None else method.lr
