"""The shape tables of the benches against sums worked out by hand from the architectures."""

import math

import pytest

from bench import shapes


def total(table):
    return sum(math.prod(shape) for shape in table)


@pytest.mark.parametrize(
    ("model", "tensors", "parameters"),
    [
        ("ResNet-18", 62, 11_689_512),
        ("ResNet-50", 161, 25_557_032),
        ("ViT-B/16", 152, 86_567_656),
        ("ViT-L/16", 296, 304_326_632),
    ],
)
def test_totals(model, tensors, parameters):
    table = shapes.MODELS[model]
    assert len(table) == tensors
    assert total(table) == parameters


def test_resnet18_by_stages():
    def stage(width, before):
        """Two basic blocks: four 3x3 convolutions, a 1x1 one where the width changes, two vectors for each."""
        convolutions = 9 * width * before + 3 * 9 * width * width + 4 * 2 * width
        return convolutions + (width * before + 2 * width if before != width else 0)

    stem, head = 64 * 3 * 49 + 128, 512 * 1000 + 1000
    by_hand = stem + stage(64, 64) + stage(128, 64) + stage(256, 128) + stage(512, 256) + head
    assert total(shapes.MODELS["ResNet-18"]) == by_hand


def test_resnet50_by_stages():
    def stage(width, before, blocks):
        """Bottlenecks 1x1, 3x3, 1x1 of inner width ``width`` and outer width ``4 * width``."""
        first = before * width + 13 * width * width + 4 * width * before + 2 * (2 * width + 8 * width)
        others = 17 * width * width + 2 * (2 * width + 4 * width)
        return first + (blocks - 1) * others

    stem, head = 64 * 3 * 49 + 128, 2048 * 1000 + 1000
    by_hand = stem + stage(64, 64, 3) + stage(128, 256, 4) + stage(256, 512, 6) + stage(512, 1024, 3) + head
    assert total(shapes.MODELS["ResNet-50"]) == by_hand


@pytest.mark.parametrize(("model", "width", "depth"), [("ViT-B/16", 768, 12), ("ViT-L/16", 1024, 24)])
def test_vit_by_layers(model, width, depth):
    layer = 12 * width**2 + 13 * width  # 3 + 1 + 4 + 4 matrices; 3 + 1 + 4 + 1 biases and 4 norm vectors
    embedding = (14 * 14 + 1) * width + width + 16 * 16 * 3 * width + width
    assert total(shapes.MODELS[model]) == embedding + depth * layer + 2 * width + 1000 * (width + 1)


def test_order_begins_and_ends_as_the_models_do():
    assert shapes.MODELS["ResNet-18"][:4] == [(64, 3, 7, 7), (64,), (64,), (64, 64, 3, 3)]
    assert shapes.MODELS["ResNet-50"][-2:] == [(1000, 2048), (1000,)]
    assert shapes.MODELS["ViT-B/16"][:4] == [(1, 1, 768), (1, 197, 768), (768, 3, 16, 16), (768,)]
    assert shapes.MODELS["ViT-L/16"][6:8] == [(3072, 1024), (3072,)]


def test_shrink_keeps_the_tensors_and_scales_dimension_0():
    assert shapes.shrink([(1000, 7), (3,), (1, 197, 8)], 0.01) == [(10, 7), (1,), (1, 197, 8)]


def test_rows():
    assert shapes.row_length((64, 3, 7, 7)) == 147
    assert shapes.row_length((512,)) == 1
    assert shapes.row_length((10**8,)) == shapes.FLAT_ROW
