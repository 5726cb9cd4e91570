"""A run that nobody ran: settings, images and predictions of known kinds, small enough to build in each test."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from aimfair.config import Config
from aimfair.data.images import ImageSet, Splits

TARGETS, INKS = ("below five", "five or more"), ("green", "red")
RIGHT = {
    "biased": ((0.97, 0.55), (0.6, 0.96)),
    "linear_probe": ((0.9, 0.7), (0.72, 0.9)),
    "full": ((0.9, 0.84), (0.86, 0.91)),
    "random": ((0.92, 0.75), (0.74, 0.92)),
    "aimfair": ((0.93, 0.86), (0.87, 0.92)),
}
"""Method -> share of right answers in each group [y][a]; of others, as aimfair."""


def made_up_config(seeds: Sequence[int] = (100, 200, 300), replicates: int = 500, **other: Any) -> Config:
    return Config.model_validate(
        {
            "title": "Coloured digits",
            "seeds": list(seeds),
            "default_method": "aimfair",
            "data": {"majority": [0, 1]},
            "model": {"config": {"model_type": "resnet"}},
            "prompts": {
                "per_group": 6,
                "targets": [["zero", "four"], ["five", "nine"]],
                "protected": [["green"], ["red"]],
                "contexts": {
                    "stroke": ["thin strokes", "thick strokes"],
                    "tilt": ["tilted left", "upright", "tilted right"],
                    "paper": ["on white paper", "on cream paper"],
                },
                "contexts_per_prompt": 2,
            },
            "methods": {
                "linear_probe": {"rule": "head_only"},
                "full": {"rule": "all"},
                "random": {"rule": "random", "density": 0.1},
                "aimfair": {"rule": "ratio", "density": 0.1},
            },
            "evaluate": {"replicates": replicates},
            **other,
        }
    )


def made_up_splits(test_per_group: Sequence[int] = (60, 60, 60, 60), train: Sequence[int] = (90, 10, 10, 90)) -> Splits:
    """Groups in the order (y, a) = (0, 0), (0, 1), (1, 0), (1, 1)."""
    return Splits(
        _images(train, "train"), _images((5, 5, 5, 5), "validation"), _images(test_per_group, "test"), TARGETS, INKS
    )


def made_up_predictions(splits: Splits, config: Config) -> dict[str, list[np.ndarray]]:
    test = splits.test
    return {
        name: [
            np.where(
                np.random.default_rng([seed, index]).random(len(test))
                < np.array(RIGHT.get(name, RIGHT["aimfair"]))[test.target, test.protected],
                test.target,
                1 - test.target,
            )
            for seed in config.seeds
        ]
        for index, name in enumerate(["biased", *config.methods])
    }


def made_up_logits(splits: Splits, config: Config) -> dict[str, list[np.ndarray]]:
    """float32 [N, 2] whose largest is :func:`made_up_predictions`, the surer the more the method is right."""
    logits = {}
    for name, of_seeds in made_up_predictions(splits, config).items():
        generator = np.random.default_rng(len(name))
        logits[name] = []
        for predicted in of_seeds:
            right = predicted == splits.test.target
            margin = generator.gamma(2, np.where(right, 1.5, 0.6)) + 0.01
            sides = np.stack([-margin, margin], axis=1) * (2 * predicted - 1)[:, None] / 2
            logits[name].append(sides.astype(np.float32))
    return logits


def with_attributes(splits: Splits, attributes: Mapping[str, tuple[tuple[str, ...], np.ndarray]]) -> Splits:
    """The same with further attributes of the test images: name -> names of the values, value of each image."""
    test = replace(splits.test, attributes={name: values for name, (_, values) in attributes.items()})
    return replace(splits, test=test, attribute_names={name: names for name, (names, _) in attributes.items()})


def draw(generator: np.random.Generator, y: int, a: int, size: int = 32) -> np.ndarray:
    """uint8 [size, size, 3]: a ring or a bar, in green or red ink on pale paper."""
    rows, columns = np.indices((size, size)) - size / 2 + generator.uniform(-3, 3, size=(2, 1, 1))
    distance = np.hypot(rows, columns)
    ink = np.abs(distance - size / 3.5) < 2.5 if y == 0 else np.abs(rows * 0.9 + columns * 0.4) < 3
    image = np.full((size, size, 3), generator.integers(225, 250), dtype=np.uint8)
    image[ink] = ((30, 140, 60), (190, 40, 40))[a]
    return image


def _images(per_group: Sequence[int], name: str) -> ImageSet:
    generator = np.random.default_rng(sum(per_group))
    groups = np.repeat(np.arange(4), per_group)
    target, protected = np.divmod(groups, 2)
    images = [draw(generator, y, a) for y, a in zip(target, protected, strict=True)]
    return ImageSet(np.stack(images), target, protected, tuple(f"{name}-{i}" for i in range(len(groups))))
