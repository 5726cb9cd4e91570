"""A finished run directory, as the stages leave it, without the work."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aimfair.data.images import Splits
from aimfair.diffusion.sampler import Comparison
from aimfair.evaluation.compare import compare
from aimfair.generation.manifest import ImageRecord, file_name, write_manifest
from aimfair.generation.summary import GenerationSummary, GroupSummary, Speed
from aimfair.prompts.diversity import measure
from aimfair.prompts.grammar import save_prompts, write_prompts
from aimfair.run.directory import Run
from aimfair.selective.mask import ParameterMask
from aimfair.stages.context import provide_splits
from aimfair.stages.evaluate import experiment
from aimfair.training.history import Epoch, History
from tests.report.made_up import (
    draw,
    made_up_config,
    made_up_logits,
    made_up_predictions,
    made_up_splits,
    with_attributes,
)

SHAPES = {
    "stem.convolution.weight": (16, 3, 3, 3),
    "stem.norm.weight": (16,),
    "stages.0.layers.0.weight": (32, 16, 3, 3),
    "stages.0.layers.1.weight": (32, 32, 3, 3),
    "stages.1.layers.0.weight": (64, 32, 3, 3),
    "head.weight": (2, 64),
    "head.bias": (2,),
}


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory; tests that change it copy it."""
    path = tmp_path_factory.mktemp("runs") / "made-up"
    with Run.open(path, made_up_config(), quiet=True) as run:
        fill(run)
    return path


@pytest.fixture
def run(finished: Path) -> Iterator[Run]:
    with open_run(finished) as run:
        yield run


def open_run(path: Path) -> Run:
    """A run whose real images are made up, too."""
    config = Run.config_of(path)
    assert config is not None
    run = Run.open(path, config, quiet=True)
    provide_splits(run, run_splits())
    return run


def run_splits() -> Splits:
    """With one further attribute of the test images; no red one is faint."""
    splits = made_up_splits()
    stroke = np.random.default_rng(11).integers(3, size=len(splits.test))
    stroke[(splits.test.protected == 1) & (stroke == 2)] = 0
    return with_attributes(splits, {"stroke": (("thin", "thick", "faint"), stroke)})


def fill(run: Run) -> None:
    config, splits = run.config, run_splits()
    predicted, logits = made_up_predictions(splits, config), made_up_logits(splits, config)
    prompts = write_prompts(config.prompts)
    save_prompts(run.prompts, prompts)
    measure(prompts, config.prompts).save(run.diversity)
    _synthetic(run)
    for seed in config.seeds:
        generator = np.random.default_rng(seed)
        for name in predicted:
            folder = run.baseline(seed) if name == "biased" else run.finetuned(seed, name)
            folder.mkdir(parents=True)
            _history(generator, 15 if name == "biased" else 8).save(folder)
        parameters = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}
        masks = {
            "linear_probe": ParameterMask.from_names(parameters, ["head.weight", "head.bias"]),
            "full": ParameterMask.full(parameters),
            "random": ParameterMask.random(parameters, 0.1, seed=seed),
            "aimfair": ParameterMask.random(parameters, 0.1, seed=1) & ParameterMask.random(parameters, 0.9, seed=seed)
            | ParameterMask.from_names(parameters, ["head.weight"]),
        }
        for name in config.methods:
            run.mask(seed, name).parent.mkdir(exist_ok=True)
            masks.get(name, masks["aimfair"]).save(run.mask(seed, name))
    density = {name: [ParameterMask.load(run.mask(s, name)).density for s in config.seeds] for name in config.methods}
    compare(experiment(config), splits, predicted, density, logits, reads_groups={"full"}).save(run.results)
    for stage, seconds in (("prompts", 0.1), ("generate", 41.5), ("train", 80.2), ("evaluate", 0.7)):
        run.log("stage finished", stage=stage, seconds=seconds)
    run.finish("evaluate", {}, [run.results])


def _synthetic(run: Run) -> None:
    generator = np.random.default_rng(5)
    (run.synthetic / "images").mkdir(parents=True)
    records = {}
    for prompt in write_prompts(run.config.prompts):
        for replica in range(2):
            i = len(records)
            file = file_name(i, f"{i:012x}")
            Image.fromarray(draw(generator, prompt.y, prompt.a)).save(run.synthetic / file)
            records[i] = ImageRecord(
                image=i, y=prompt.y, a=prompt.a, prompt=prompt.id, text=prompt.text, replica=replica, seed=i,
                sets=["balanced"], file=file, attempt=0, rejected=[],
            )  # fmt: skip
    write_manifest(run.synthetic, records.values())
    GenerationSummary(
        groups=[
            GroupSummary(y=y, a=a, made=12 + 5 * y, kept=12, rejected={"black": 2, "too_dark": 3} if y else {})
            for y in (0, 1)
            for a in (0, 1)
        ],
        speed=Speed(
            images=1058,
            seconds=100.0,
            sampling=80.0,
            filters=2.0,
            stalled=1.5,
            processes=2,
            encoding=8.0,
            parts={"text_encoder": 1.0, "denoiser": 70.0, "scheduler": 1.5, "decoder": 6.0, "copies": 0.3},
        ),
        comparison=Comparison(
            shortcuts={"quantization": "int8", "guidance_interval": [0.2, 0.8]},
            images=8,
            largest=31,
            mean=1.23,
            ratio=2.6,
        ),
    ).save(run.generation)


def _history(generator: np.random.Generator, epochs: int) -> History:
    noise = generator.normal(0, 0.01, size=(epochs, 4))
    return History(
        epochs=[
            Epoch(
                epoch=i + 1,
                lr=0.001,
                train_loss=0.7 * 0.8**i + 0.05 + abs(noise[i, 0]),
                train_accuracy=0.97 - 0.3 * 0.75**i + noise[i, 1],
                validation_loss=0.7 * 0.85**i + 0.12 + abs(noise[i, 2]),
                validation_accuracy=0.93 - 0.3 * 0.8**i + noise[i, 3],
                seconds=1.1,
            )
            for i in range(epochs)
        ],
        kept_epoch=epochs,
    )
