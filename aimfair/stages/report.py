"""Gathers what a report is made from, and writes report.html."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import aimfair
from aimfair.base.files import write_text
from aimfair.evaluation.flips import Flips
from aimfair.evaluation.predictions import load_logits
from aimfair.evaluation.results import Results
from aimfair.generation.manifest import MAX_PIXELS, ImageRecord, Manifest
from aimfair.generation.plan import Sources
from aimfair.generation.summary import GenerationSummary
from aimfair.methods import BIASED
from aimfair.prompts.diversity import Diversity, measure
from aimfair.prompts.grammar import load_prompts
from aimfair.report import page
from aimfair.report.material import PAIRS_OF_CLASS, Material, Pair, Pixels, Replies, Synthetic, choose
from aimfair.report.tuning_section import Tuning
from aimfair.run.directory import Run
from aimfair.stages.context import splits_of
from aimfair.stages.finetune import require_chosen
from aimfair.stages.flips import pairs_of
from aimfair.stages.select import mask_of
from aimfair.training.history import History
from aimfair.tuning.trials import Choice, Trial

Part = TypeVar("Part")


def run(run: Run) -> None:
    tuned = [run.digest_of(f"tune/chosen/{name}") for name in run.config.tuned]
    require_chosen(run)
    flips = [run.digest_of("flips", content=True)] if run.config.generate.held_out_pairs else []
    inputs = {"upstream": [run.digest_of("evaluate", content=True), *tuned, *flips], "aimfair": aimfair.__version__}
    if not run.is_done("report", inputs):
        write_text(run.report, page.render(gather(run)))
        run.finish("report", inputs, [run.report])


def gather(run: Run) -> Material:
    """Reads everything that a report needs.

    Raises:
        AimfairError: there are no results.
    """
    config, seeds = run.config, run.config.seeds
    histories = {
        name: {seed: one for seed in seeds if (one := History.load(run.model(seed, name))) is not None}
        for name in (BIASED, *config.methods)
    }
    masks = {
        name: {seed: mask_of(run, seed, name) for seed in seeds if run.mask(seed, name).exists()}
        for name, method in config.methods.items()
        if method.kind == "tune"
    }
    count, synthetic = _synthetic(run.synthetic)
    events = _events(run)
    return Material(
        config=config,
        settings=(run.path / "config.yaml").read_text(encoding="utf-8"),
        results=Results.load(run.results),
        splits=splits_of(run),
        diversity=_diversity(run),
        replies=_replies(events),
        synthetic=synthetic,
        synthetic_images=count,
        generation=GenerationSummary.load(run.generation) if run.generation.exists() else None,
        histories=_without_empty(histories),
        masks=_without_empty(masks),
        stage_seconds=_stage_seconds(events),
        tuned={name: _tuning(run, name) for name in config.tuned},
        flips=Flips.load(run.flips) if config.generate.held_out_pairs else None,
        pairs=sample_pairs(run) if config.generate.held_out_pairs else (),
    )


def sample_pairs(run: Run) -> list[Pair]:
    """A few held-out pairs of each class, with what the biased model and the default method see in them."""
    manifest = Manifest(run.synthetic)
    held, places = pairs_of(manifest.records.values())
    names, seed = (BIASED, run.config.default_method), run.config.seeds[0]
    predicted = {name: load_logits(run.logits_of_pairs(seed, name)).argmax(axis=1) for name in names}
    of_classes: dict[int, list[list[int]]] = defaultdict(list)
    for of_pair in places.tolist():
        of_classes[held[of_pair[0]].y].append(of_pair)
    return [
        Pair(
            y,
            [_pixels(manifest, held[place]) for place in of_pair],
            held[of_pair[0]].text,
            {name: predicted[name][of_pair].tolist() for name in names},
            Sources.pixels(splits_of(run), source) if (source := held[of_pair[0]].source) is not None else None,
        )
        for y, pairs in sorted(of_classes.items())
        for of_pair in choose(pairs, [held[of_pair[0]].prompt for of_pair in pairs], "pairs", y)[:PAIRS_OF_CLASS]
    ]


def _tuning(run: Run, name: str) -> Tuning:
    trials = [Trial.load(run.trial(name, number)) for number in range(run.config.tune.trials)]
    return Tuning(trials, Choice.load(run.chosen(name)).trial)


def _events(run: Run) -> list[dict[str, Any]]:
    """Of the log. Lines that cannot be read cost their part of the times, not the report."""
    path = run.path / "log.jsonl"
    events = [_event(line) for line in path.read_bytes().splitlines()]
    if damaged := events.count(None):
        run.log.warn(f"{path}: {damaged:,} damaged lines are left out; the times in the report may be too short")
    return [event for event in events if event is not None]


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _synthetic(folder: Path) -> tuple[int, dict[tuple[int, int], list[Synthetic]]]:
    """The number of images in the balanced set, and a few of each group."""
    groups: dict[tuple[int, int], list[ImageRecord]] = defaultdict(list)
    manifest = Manifest(folder)
    for record in manifest.records.values():
        if "balanced" in record.sets and manifest.stored(record).exists():
            groups[record.group].append(record)
    return sum(map(len, groups.values())), {
        (y, a): [
            Synthetic(_pixels(manifest, record), record.text)
            for record in choose(records, [record.prompt for record in records], "synthetic", y, a)
        ]
        for (y, a), records in groups.items()
    }


def _pixels(manifest: Manifest, record: ImageRecord) -> Pixels:
    return np.asarray(manifest.source.read_rgb(record.file, MAX_PIXELS))


def _diversity(run: Run) -> Diversity | None:
    """From the stage, or measured now for runs of older versions that did not; None: images are imported or drawn."""
    if not run.config.generate.in_use:
        return None
    if run.diversity.exists():
        return Diversity.load(run.diversity)
    return measure(load_prompts(run.prompts), run.config.prompts) if run.prompts.exists() else None


def _replies(events: Sequence[dict[str, Any]]) -> Replies | None:
    replies = [event for event in events if event["event"] == "prompts reply"]
    if not replies:
        return None
    refused = sum((Counter(event["refused"]) for event in replies), Counter[str]())
    return Replies(
        len(replies),
        refused=dict(refused.most_common()),
        **{key: sum(event[key] for event in replies) for key in ("accepted", "tokens_in", "tokens_out")},
    )


def _stage_seconds(events: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Stage -> total time over all invocations."""
    seconds: dict[str, float] = defaultdict(float)
    for event in events:
        if event["event"] in ("stage finished", "stage stopped"):
            seconds[event["stage"]] += event["seconds"]
    return dict(seconds)


def _without_empty(parts: dict[str, dict[int, Part]]) -> dict[str, dict[int, Part]]:
    return {name: of_seeds for name, of_seeds in parts.items() if of_seeds}
