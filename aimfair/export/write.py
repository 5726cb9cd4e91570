"""Exports one model of a run to a folder with everything its user needs."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import aimfair
from aimfair.base.errors import ConfigError
from aimfair.base.files import file_digest, write_json, write_text
from aimfair.evaluation.flips import Flips
from aimfair.evaluation.results import Results
from aimfair.export import model_card, model_files, onnx
from aimfair.export.folder import MARK, new_folder
from aimfair.export.model_card import CARD, UNKNOWN, Choice, Facts
from aimfair.export.model_files import copy_model
from aimfair.generation.manifest import Manifest
from aimfair.generation.summary import GenerationSummary
from aimfair.methods import BIASED
from aimfair.prompts.grammar import load_prompts
from aimfair.report.template import environment
from aimfair.run.directory import Run, model_step
from aimfair.stages.context import prepare_process, splits_of
from aimfair.stages.finetune import require_chosen
from aimfair.stages.select import mask_of
from aimfair.training.feed import Normalize
from aimfair.training.history import HISTORY, History
from aimfair.training.models import WEIGHTS, load_model

EXAMPLES = 64
"""Test images on which ONNX and preprocessing are compared."""

DELTA = "delta.safetensors"
"""What the method changed of the biased model."""

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")


def export_run(
    run: Run,
    *,
    method: str | None = None,
    seed: int | None = None,
    to: Path | None = None,
    with_onnx: bool = True,
    with_delta: bool = False,
    license: str = UNKNOWN,
    overwrite: bool = False,
) -> Path:
    """Writes the folder and returns its path.

    It contains config.json and model.safetensors in the format of the backbone's library, with class names;
    preprocessor_config.json, for models of transformers; model.onnx; delta.safetensors, which makes the model of the
    biased one of the same seed; README.md, the model card; and export.json, which lists the other files with their
    digests.

    Args:
        method, seed: as :func:`choose`.
        to: None: ``export/<method>-<seed>`` in the run.
        license: of the model, an identifier known to the hub.
        overwrite: whether an earlier export there may be replaced.

    Raises:
        ConfigError: no such method or seed; a malformed license; a delta of the biased model.
        AimfairError: the run is not evaluated or not up to date; the folder has other content; a package is missing;
            the ONNX file differs from the model.
        Interrupted: as the run's interrupt says; no files are left.
    """
    if not _LICENSE.fullmatch(license):
        raise ConfigError(f"--license {license}: expected an identifier of the hub, such as apache-2.0 or other")
    prepare_process(run.config)
    if with_onnx:
        onnx.require_packages()
    run.digest_of("evaluate", content=True)  # first, so that an unfinished run gets this error
    require_chosen(run)
    if run.config.generate.held_out_pairs:
        run.digest_of("flips", content=True)
    choice = choose(run, method, seed)
    if with_delta and choice.method == BIASED:
        raise ConfigError(f"--delta: {BIASED} is what a delta applies to; choose a method")
    results = Results.load(run.results)
    to = run.path / "export" / f"{choice.method}-{choice.seed}" if to is None else to
    with new_folder(to, overwrite=overwrite) as folder:
        if with_delta:
            aimfair.Delta.make(run.model(choice.seed, BIASED) / WEIGHTS, choice.folder / WEIGHTS, folder / DELTA)
        _fill(run, choice, results, folder, with_onnx=with_onnx, license=license)
    run.log("exported", method=choice.method, seed=choice.seed, to=str(to))
    return to


def _fill(run: Run, choice: Choice, results: Results, folder: Path, *, with_onnx: bool, license: str) -> None:
    config, splits = run.config, splits_of(run)
    of_transformers = copy_model(choice.folder, folder, splits.target_names)
    if of_transformers:
        model_files.write(folder, config.data, config.model)
    run.interrupt.check()

    model = load_model(choice.folder, config.model)  # which validates the weights
    model.eval()
    chosen = model_files.examples(splits.test, EXAMPLES)
    difference, agreement = None, None
    if of_transformers:
        difference = model_files.measure(folder, model, splits.test, chosen, config.data, config.model)
        run.interrupt.check()
    if with_onnx:
        normalize = Normalize(config.model, torch.device("cpu"))
        images = np.ascontiguousarray(splits.test.images[chosen])
        agreement = onnx.export(model, normalize(images).contiguous(), folder)
        run.interrupt.check()

    facts = Facts(
        config=run.tuned_config(),
        results=results,
        choice=choice,
        group_counts={name: part.group_counts(*splits.shape) for name, part in splits.parts.items()},
        density=_density(run, choice),
        prompts=len(load_prompts(run.prompts)) if run.config.generate.in_use else None,
        generation=GenerationSummary.load(run.generation) if run.generation.exists() else None,
        synthetic=_balanced(run.synthetic),
        agreement=agreement,
        preprocessing=difference,
        environment=environment(),
        digests={
            WEIGHTS: file_digest(folder / WEIGHTS),
            "config.yaml of the run": file_digest(run.path / "config.yaml"),
        },
        license=license,
        flips=Flips.load(run.flips) if config.generate.held_out_pairs else None,
    )
    write_text(folder / CARD, model_card.render(facts))
    write_json(folder / MARK, _mark(folder, facts))


def choose(run: Run, method: str | None = None, seed: int | None = None) -> Choice:
    """The model of ``method`` (default: ``default_method``) and ``seed`` (default: the best by validation accuracy).

    Test images play no part; ties go to the first seed.

    Args:
        method: name of a method, or "biased" for the model before any method.

    Raises:
        ConfigError: the run has no such method or seed, or no validation accuracy to choose a seed by.
        AimfairError: the model is not finished, or out of date.
    """
    config = run.config
    method = config.default_method if method is None else method
    if method != BIASED and method not in config.methods:
        raise ConfigError(f"--method {method}: expected one of {', '.join((BIASED, *config.methods))}")
    if seed is not None and seed not in config.seeds:
        raise ConfigError(f"--seed {seed}: expected one of {', '.join(map(str, config.seeds))}")
    folders = {one: run.model(one, method) for one in config.seeds}
    accuracies = {one: _validation_accuracy(folder) for one, folder in folders.items()}
    if seed is not None:
        reason = "as requested"
    elif len(config.seeds) == 1:
        seed, reason = config.seeds[0], "the only one"
    else:
        known = {one: value for one, value in accuracies.items() if value is not None}
        if len(known) < len(accuracies):
            lacking = next(one for one in accuracies if one not in known)
            raise ConfigError(f"{folders[lacking] / HISTORY}: no validation accuracy to choose a seed by; give --seed")
        seed = max(known, key=lambda one: (known[one], -config.seeds.index(one)))
        reason = f"the best of {len(config.seeds)} by validation accuracy, without test images"
    run.digest_of(model_step(seed, method))
    return Choice(method, seed, folders[seed], reason, accuracies[seed])


def _validation_accuracy(folder: Path) -> float | None:
    if (history := History.load(folder)) is None:
        return None
    return next((epoch.validation_accuracy for epoch in history.epochs if epoch.epoch == history.kept_epoch), None)


def _mark(folder: Path, facts: Facts) -> dict[str, Any]:
    """The machine-readable summary, with the digests of the exported files."""
    return {
        "aimfair": aimfair.__version__,
        "method": facts.choice.method,
        "seed": facts.choice.seed,
        "labels": facts.results.target_names,
        "onnx": facts.agreement and asdict(facts.agreement),
        "preprocessing": facts.preprocessing and asdict(facts.preprocessing),
        "files": {file.name: file_digest(file) for file in sorted(folder.iterdir())},
    }


def _density(run: Run, choice: Choice) -> float | None:
    if choice.method == BIASED or not run.mask(choice.seed, choice.method).exists():
        return None
    return mask_of(run, choice.seed, choice.method).density


def _balanced(synthetic: Path) -> int | None:
    """Images in the balanced set; None if there is none."""
    records = Manifest(synthetic).records.values()
    return sum("balanced" in record.sets for record in records) or None


def describe(to: Path) -> str:
    """One line on an export, for the terminal."""
    mark = json.loads((to / MARK).read_text(encoding="utf-8"))
    return f"{mark['method']}, seed {mark['seed']}: {', '.join(mark['files'])} in {to}"
