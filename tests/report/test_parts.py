"""Charts, sample sheets and densities."""

import base64
import io
import math
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aimfair.report import charts, material, run_sections
from aimfair.selective.mask import ParameterMask
from aimfair.training.history import Epoch, History


@given(st.lists(st.floats(0, 1), min_size=1))
def test_a_scale_holds_its_values_in_few_round_steps(values: list[float]) -> None:
    scale = charts.scale_for(values)
    assert scale[0] <= min(values) + 1e-9
    assert scale[-1] == 1
    assert 3 <= len(scale) <= 6
    assert scale[0] >= -1e-9
    assert all(100 * tick == pytest.approx(round(100 * tick)) for tick in scale)


@given(st.floats(0.2, 1), st.floats(0.2, 1), st.floats(0.2, 1))
def test_marks_lie_in_order_within_the_chart(low: float, value: float, high: float) -> None:
    low, value, high = sorted((low, value, high))
    drawn = ElementTree.fromstring(
        charts.dots_with_intervals([charts.Mark(value, low, high, "after")], charts.scale_for([0.2]))
    )
    group = drawn.find("g")
    assert group is not None
    line, circle = group.find("line"), group.find("circle")
    assert line is not None
    assert circle is not None
    at = [float(text.rstrip("%")) for text in (line.get("x1"), circle.get("cx"), line.get("x2"))]
    assert at == sorted(at)
    assert 0 <= at[0] <= at[-1] <= 100


def test_what_is_undefined_is_not_drawn() -> None:
    nan = math.nan
    assert "<circle" not in charts.dots_with_intervals([charts.Mark(nan, nan, nan, "after")], charts.scale_for([nan]))
    assert charts.strip([nan, 0.5], nan, charts.scale_for([0.5])).count("<circle") == 1
    assert "nan" not in charts.strip([nan, 0.5], nan, charts.scale_for([0.5]))
    assert "nan" not in charts.curves([("train", [0.5, nan, 0.3])], 1.0, 0.0)


def test_curves_reach_the_edges() -> None:
    svg = charts.curves([("train", [1.0, 0.5, 0.0]), ("validation", [0.25])], top=1.0, bottom=0.0)
    assert 'class="train" points="0.00,0.00 50.00,50.00 100.00,100.00"' in svg
    assert 'class="validation" points="0.00,75.00 100,75.00"' in svg


def test_samples_show_different_prompts_first() -> None:
    rows = list(range(40))
    keys = [str(row // 10) for row in rows]
    chosen = material.choose(rows, keys, "test")
    assert len(chosen) == len(set(chosen)) == material.PER_GROUP
    assert {keys[row] for row in chosen[:4]} == set(keys)
    assert chosen == material.choose(rows, keys, "test")
    assert chosen != material.choose(rows, keys, "another")
    assert material.choose(rows[:2], keys[:2], "test") in ([0, 1], [1, 0])
    assert material.choose([], [], "test") == []


@pytest.mark.parametrize(("size", "kind", "shown"), [(32, "png", 32), (300, "jpeg", 160)])
def test_images_are_small_and_whole(size: int, kind: str, shown: int) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(size, size, 3), dtype=np.uint8)
    head, data = material.data_uri(pixels).split(",")
    assert head == f"data:image/{kind};base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (shown, shown)
        assert kind != "png" or np.array_equal(np.asarray(image), pixels)


def test_densities_are_means_over_seeds() -> None:
    shapes = {"stem.weight": (10, 10), "blocks.0.weight": (20,), "blocks.0.bias": (20,), "head.weight": (4, 5)}
    parameters = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    half = {"stem.weight": torch.arange(100).reshape(10, 10) < 50}
    of_seeds = {
        1: ParameterMask.from_bool(half, parameters),
        2: ParameterMask.from_names(parameters, ["stem.weight", "blocks.0.bias"]),
    }
    rows = run_sections.block_densities({"aimfair": of_seeds, "full": {1: ParameterMask.full(parameters)}})
    assert [(row.name, row.numel, row.densities) for row in rows] == [
        ("stem", 100, (0.75, 1.0)),
        ("blocks.0", 40, (0.25, 1.0)),
        ("head", 20, (0.0, 1.0)),
    ]
    assert [row.densities for row in run_sections.tensor_densities(of_seeds)] == [(0.75,), (0.0,), (0.5,), (0.0,)]
    assert run_sections.agreement(of_seeds) == pytest.approx(50 / 120)
    assert run_sections.agreement({1: of_seeds[1]}) is None


def test_a_training_is_told_from_its_histories() -> None:
    values = {"lr": 0.1, "train_accuracy": 0.9, "validation_accuracy": 0.8, "validation_loss": 0.4, "seconds": 2.0}
    history = History(
        epochs=[Epoch(epoch=e, train_loss=loss, **values) for e, loss in ((1, 1.7), (2, 0.6))], kept_epoch=2
    )
    (told,) = run_sections.trainings({"biased": {1: history, 2: History()}}, "aimfair")
    accuracy, loss = told["panels"]
    assert (told["name"], told["epochs"], told["kept_epochs"]) == ("biased", 2, [2])
    assert [loss[key] for key in ("top", "bottom", "last_train", "last_validation")] == ["2", "0", "0.600", "0.400"]
    assert (accuracy["top"], accuracy["bottom"]) == ("100%", "80%")
    assert run_sections.mean_seconds({1: history, 2: history}) == pytest.approx(4)
    assert run_sections.mean_seconds({}) is None
