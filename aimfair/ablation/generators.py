"""Settings of the text-to-image model, judged by what they buy: images per second, image statistics, and fairness of
the models that are tuned on the images.

A faster setting is recommended only where the intervals show that it loses no more than a margin, see
:mod:`aimfair.ablation.noninferiority`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from torch import Tensor

from aimfair.ablation import generator_speed, options
from aimfair.ablation.generator_arms import GeneratorArm, facts_of, read_arms
from aimfair.ablation.generator_speed import Speed
from aimfair.ablation.image_distance import Extractor, HeadInputs, PretrainedFeatures, features_folder, features_of, kid
from aimfair.ablation.noninferiority import MARGIN, Judgement, judge_losses
from aimfair.ablation.options import Options, shares
from aimfair.ablation.outcomes import METRICS, Figure, Findings, Outcome, Outcomes, versus_reference
from aimfair.ablation.plan import Arm, Names, Parent, Plan, variant
from aimfair.base.device import tuning_device
from aimfair.base.errors import ConfigError, prefixed
from aimfair.base.progress import duration
from aimfair.config import Config
from aimfair.diffusion.engines.registry import AUTO, engine_facts
from aimfair.diffusion.model import model_folder
from aimfair.generation.manifest import Manifest
from aimfair.report import charts, wording
from aimfair.run.directory import Run
from aimfair.stages.context import splits_of, synthetic_of, trained_model

OWN = "the run"
"""Label of the reference: the settings of the run itself."""

_OWN_GROUP = "own"

_FASTER = 1.1
"""A setting that is not faster than the run's by this factor is no candidate: the difference may be that of other work
on the machine."""

_RECOMMENDED = "recommended"


@dataclass(frozen=True)
class Request(options.Request):
    """
    Attributes:
        arms: besides the run itself. same: labels of those that are the run itself.
        margin: the largest loss that a faster setting may have, a share.
        features: folder of a vision model; None: images are compared by the biased models alone.
    """

    arms: list[GeneratorArm]
    same: list[str]
    margin: float
    features: Path | None


def read(options: Options, config: Config) -> Request:
    """``--method``, ``--values``, ``--margin`` and ``--features``."""
    options.only("generators", "method", "values", "margin", "features")
    if (instead := config.generate.instead) is not None:
        raise ConfigError(f"ablate generators: the images of this run are those of {instead}, not of a generator")
    margins = shares("--margin", options.margin, [MARGIN])
    if len(margins) > 1:
        raise ConfigError(f"--margin: found {options.margin!r}, expected one share")
    arms, same = read_arms(options.values, config)
    return Request(*options.method_of(config), arms, same, margins[0], features_folder(options.features))


def plan(parent: Parent, request: Request) -> Plan:
    config, names = parent.config, Names(parent.config)
    name = names.add(request.method, request.tune)
    for one in request.arms:
        with prefixed(f"--values: arm {one.label!r}"):  # before hours of work for the others
            model_folder(one.config.generate.model, one.config.generate.allow_download, one.config.generate.base)
            if (engine := one.config.generate.engine) != AUTO:
                engine_facts(engine, one.config.generate.quantization)
    groups = {_OWN_GROUP: variant(config, names.methods, name)}
    arms = [Arm(OWN, name, _OWN_GROUP, facts=facts_of(config, request.arms))]
    for one in request.arms:
        groups[one.group] = variant(one.config, names.methods, name)
        arms.append(Arm(one.label, name, one.group, facts=facts_of(one.config, request.arms)))
    points = wording.percent(request.margin, unit="")
    redraws = any(one.is_redraw for one in request.arms)
    notes = [
        f"A faster setting is recommended only if it is shown to lose at most {points} points (--margin) of"
        f" worst-group accuracy, equalized odds and accuracy: the intervals over images and over seeds of every one of"
        " the three must exclude a larger loss. Holm's correction over the faster settings widens these intervals. Not"
        " shown means that the loss may be larger, not that it is: more seeds narrow the intervals.",
        "The images of a setting are one draw of noise, and the intervals do not hold what another draw would change."
        + ("" if redraws else " An arm like seed=1, the run with other noise, shows how much that is."),
        f"Images/s: kept images of the fastest of several batches in the model and its filters, without files; all"
        f" settings in one process, one after another and again in reverse. Faster means by a factor of {_FASTER} at"
        " least.",
        "KID: squared maximum mean discrepancy, unbiased, times 1,000, in the penultimate features of the biased models"
        f"{', and in those of ' + request.features.name if request.features else ''}; mean over the seeds. To the"
        " run: between the balanced sets; to real: between the biased set, which has the group sizes of the training"
        " images, and those. It is compared within a column only, and below zero where two sets differ less than"
        " chance. No recommendation depends on it.",
    ]
    if request.same:
        listed = wording.listing([f"“{label}”" for label in request.same])
        notes.append(f"{listed}: the settings of the run itself, not repeated.")
    return Plan(
        title=f"Generators, {request.method}",
        question="The same pipeline with images of other settings of the text-to-image model, as many, of the same"
        " prompts.",
        groups=groups,
        arms=arms,
        reference=OWN,
        notes=notes,
    )


def findings(parent: Parent, request: Request, outcomes: Outcomes) -> Findings:
    runs = {
        one.arm.group: Run.attach(
            outcomes.folder / one.arm.group, _config_of(outcomes, one), parent.run.log, parent.run.progress
        )
        for one in outcomes.arms
    }
    for run in runs.values():
        run.interrupt = parent.run.interrupt
    speeds = generator_speed.measure(runs, parent.run, outcomes.folder)
    distances = _distances(runs, request.features)
    own = next(one for one in outcomes.arms if one.versus is None)
    speed = {one.arm.label: speeds[one.arm.group].images_per_second for one in outcomes.arms}
    faster = [one for one in outcomes.arms if speed[one.arm.label] >= _FASTER * speed[OWN]]
    arms = {one.arm.label: one for one in faster}
    metrics = (wording.worst_metric(outcomes.results), "eo_mean", "accuracy")
    judged = judge_losses(
        list(arms),
        lambda label, confidence: outcomes.versus_at(arms[label], own, confidence),
        metrics,
        margin=request.margin,
        confidence=outcomes.results.confidence,
        small_group=outcomes.results.small_group,
    )
    holding = [label for label, one in judged.items() if one.holds]
    chosen = max(holding, key=lambda label: speed[label], default=None)
    columns = _columns(outcomes, runs, speeds, distances, judged, chosen, metrics)
    return Findings(
        _figures(outcomes, speed),
        [
            _recommendation(judged, chosen, speed, request.margin, metrics, outcomes.results.small_group),
            *_redraws(request, outcomes, metrics),
            *versus_reference(outcomes, METRICS),
        ],
        columns,
        data={
            "margin": request.margin,
            "recommended": chosen,
            "judged": {label: asdict(one) for label, one in judged.items()},
            "speeds": {label: speeds[one.arm.group].model_dump() for label, one in _by_label(outcomes).items()},
            "jobs": {label: _job(runs[one.arm.group], parent.run) for label, one in _by_label(outcomes).items()},
            "kid": {label: distances[one.arm.group] for label, one in _by_label(outcomes).items()},
        },
    )


def _by_label(outcomes: Outcomes) -> dict[str, Outcome]:
    return {one.arm.label: one for one in outcomes.arms}


def _config_of(outcomes: Outcomes, one: Outcome) -> Config:
    config = Run.config_of(outcomes.folder / one.arm.group)
    assert config is not None  # its results were read
    return config


def _job(run: Run, origin: Run) -> dict[str, object] | None:
    """How long the whole set took, which may have been made on another day or by several processes."""
    summary = generator_speed.summary_of(run, origin)
    return None if summary is None or summary.speed is None else summary.speed.model_dump()


# -- image statistics --------------------------------------------------------------------------------------------------


def _distances(runs: Mapping[str, Run], folder: Path | None) -> dict[str, dict[str, float]]:
    """Group -> name of a column -> KID times 1,000, mean over the seeds."""
    own = runs[_OWN_GROUP]
    found: dict[str, dict[str, list[float]]] = {group: {} for group in runs}
    for name, extract in _extractors(own, folder):
        real, reference = features_of(splits_of(own).train, extract, own.interrupt), None
        for group, run in runs.items():
            balanced, biased = (
                features_of(synthetic_of(run, "balanced"), extract, run.interrupt),
                features_of(synthetic_of(run, "biased"), extract, run.interrupt),
            )
            if group == _OWN_GROUP:
                reference = balanced
            _add(found[group], f"KID to the run{name}", balanced, reference if group != _OWN_GROUP else None)
            _add(found[group], f"KID to real{name}", biased, real)
    return {group: {column: fmean(values) for column, values in of.items()} for group, of in found.items()}


def _add(found: dict[str, list[float]], column: str, features: Tensor, other: Tensor | None) -> None:
    if other is not None:
        found.setdefault(column, []).append(1000 * kid(features, other))


def _extractors(own: Run, folder: Path | None) -> list[tuple[str, Extractor]]:
    """The end of the names of columns, and the network: the biased model of every seed, and that of the user."""
    config = own.config
    device = tuning_device(config.device)
    found: list[tuple[str, Extractor]] = [
        (
            "",
            HeadInputs(
                trained_model(own, own.baseline(seed), device), config.model, config.data.image_size, device, "KID"
            ),
        )
        for seed in config.seeds
    ]
    return found if folder is None else [*found, (f", {folder.name}", PretrainedFeatures(folder, device))]


# -- what the page says ------------------------------------------------------------------------------------------------


def _recommendation(
    judged: Mapping[str, Judgement],
    chosen: str | None,
    speed: Mapping[str, float],
    margin: float,
    metrics: tuple[str, ...],
    small_group: int,
) -> str:
    points = wording.percent(margin, unit="")
    if not judged:
        return "No setting is faster than the run's."
    if chosen is not None:
        losses = wording.listing([f"{wording.lower_label(m)} {_points(judged[chosen].loss[m])}" for m in metrics])
        return (
            f"Recommended: {chosen}, {speed[chosen] / speed[OWN]:.1f} times as fast as the run's own setting. It is"
            f" shown to lose at most {points} points; largest losses within the intervals: {losses}."
        )
    defined = {
        label: max(one.loss.values()) for label, one in judged.items() if not any(map(math.isnan, one.loss.values()))
    }
    if not defined:
        return (
            f"No faster setting is recommended: losses of at most {points} points cannot be shown with one seed or an"
            " empty group."
        )
    closest = min(defined, key=lambda label: defined[label])
    if defined[closest] <= margin:
        few = wording.listing([wording.lower_label(one) for one in judged[closest].few])
        return (
            f"No faster setting is recommended: the intervals of {closest} exclude losses of more than {points} points,"
            f" but fewer than {small_group} test images decide its {few}, and so few show nothing."
        )
    metric = max(metrics, key=lambda one: judged[closest].loss[one])
    return (
        f"No faster setting is recommended: none is shown to lose at most {points} points. Closest is {closest}, whose"
        f" {wording.lower_label(metric)} may be up to {_points(defined[closest])} points worse."
    )


def _redraws(request: Request, outcomes: Outcomes, metrics: tuple[str, ...]) -> list[str]:
    """What other noise alone changed: a sentence for every arm that is the run with another seed of generation."""
    found = []
    for one in request.arms:
        versus = _by_label(outcomes)[one.label].versus if one.is_redraw else None
        if versus is not None:
            moved = wording.listing([f"{wording.lower_label(m)} {wording.points(versus[m].mean)}" for m in metrics])
            found.append(
                f"Other noise alone ({one.label}) changes, in points, {moved}: a smaller difference between settings"
                " may be the luck of one draw."
            )
    return found


def _points(loss: float) -> str:
    """A loss in points, of which there are 100; a gain has none."""
    return wording.percent(min(max(loss, 0.0), 1.0), unit="") if not math.isnan(loss) else wording.percent(loss)


def _columns(
    outcomes: Outcomes,
    runs: Mapping[str, Run],
    speeds: Mapping[str, Speed],
    distances: Mapping[str, Mapping[str, float]],
    judged: Mapping[str, Judgement],
    chosen: str | None,
    metrics: tuple[str, ...],
) -> dict[str, dict[str, str]]:
    columns: dict[str, dict[str, str]] = {}
    base = speeds[_OWN_GROUP].images_per_second
    for label, one in _by_label(outcomes).items():
        rate = speeds[one.arm.group].images_per_second
        cells = {"verdict": _verdict(label, judged.get(label), chosen)}  # first, as the table is wide
        cells |= {"images/s": f"{rate:.3g}", "speed": f"{rate / base:.2f}x"}
        cells["time for all images"] = duration(len(Manifest(runs[one.arm.group].synthetic).records) / rate)
        cells |= {
            column: f"{value:.2f}".replace("-", "\N{MINUS SIGN}") for column, value in distances[one.arm.group].items()
        }
        if label in judged:
            for metric in metrics:
                cells[f"{wording.lower_label(metric)}, loss up to"] = _points(judged[label].loss[metric])
        for column, cell in cells.items():
            columns.setdefault(column, {})[label] = cell
    return columns


def _verdict(label: str, one: Judgement | None, chosen: str | None) -> str:
    if label == OWN:
        return "reference"
    if one is None:
        return "not faster"
    if label == chosen:
        return _RECOMMENDED
    if one.few:
        return "too few test images"
    return "no loss beyond the margin" if one.holds else "not shown"


def _figures(outcomes: Outcomes, speed: Mapping[str, float]) -> list[Figure]:
    figures = []
    for metric in METRICS:
        points = [
            charts.Point(
                speed[one.arm.label],
                one.mean[metric],
                one.arm.label,
                "before" if one.versus is None else "after",
                *one.result.interval[metric],
            )
            for one in outcomes.arms
        ]
        chart = charts.scatter(
            points, x_name="images/s", y_name=wording.lower_label(metric), x_format=charts.number, log_x=True
        )
        caption = f"Mean over the seeds; bars are intervals over the test images, hollow: {OWN}."
        figures.append(Figure(f"Speed and {wording.lower_label(metric)}", caption, chart))
    return figures
