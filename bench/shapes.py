"""Parameter shapes of the models the benches run on, in parameter order, with 1000 classes.

ResNets follow torchvision's definition and ViTs timm's. Only the shapes matter, so no weights are needed.
"""

Shape = tuple[int, ...]


def _batch_norm(width: int) -> list[Shape]:
    return [(width,), (width,)]


def _conv(out: int, width: int, kernel: int) -> list[Shape]:
    """A convolution without bias and the batch normalisation behind it."""
    return [(out, width, kernel, kernel), *_batch_norm(out)]


def _linear(out: int, width: int) -> list[Shape]:
    return [(out, width), (out,)]


def resnet(depths: tuple[int, ...], *, bottleneck: bool) -> list[Shape]:
    """ResNet (arXiv 1512.03385) with ``depths[i]`` blocks in stage i."""
    expansion = 4 if bottleneck else 1
    shapes = _conv(64, 3, 7)
    width = 64
    for stage, depth in enumerate(depths):
        inner = 64 << stage
        outer = inner * expansion
        for block in range(depth):
            if bottleneck:
                shapes += _conv(inner, width, 1) + _conv(inner, inner, 3) + _conv(outer, inner, 1)
            else:
                shapes += _conv(inner, width, 3) + _conv(inner, inner, 3)
            if block == 0 and (stage > 0 or width != outer):
                shapes += _conv(outer, width, 1)
            width = outer
    return shapes + _linear(1000, width)


def vit(width: int, depth: int, *, patch: int = 16, image: int = 224) -> list[Shape]:
    """Vision transformer (arXiv 2010.11929) with an MLP ratio of 4 and one linear layer for query, key and value."""
    tokens = (image // patch) ** 2 + 1
    norm = [(width,), (width,)]
    attention = _linear(3 * width, width) + _linear(width, width)
    mlp = _linear(4 * width, width) + _linear(width, 4 * width)
    embedding = [(1, 1, width), (1, tokens, width), (width, 3, patch, patch), (width,)]
    return embedding + depth * (norm + attention + norm + mlp) + norm + _linear(1000, width)


MODELS: dict[str, list[Shape]] = {
    "ResNet-18": resnet((2, 2, 2, 2), bottleneck=False),
    "ResNet-50": resnet((3, 4, 6, 3), bottleneck=True),
    "ViT-B/16": vit(768, 12),
    "ViT-L/16": vit(1024, 24),
}

FLAT: dict[str, list[Shape]] = {"flat 1e7": [(10**7,)], "flat 1e8": [(10**8,)]}
"""One tensor of one dimension."""

FLAT_ROW = 4096
"""Elements of a row of a flat list."""


def shrink(shapes: list[Shape], factor: float) -> list[Shape]:
    """The same number of tensors with their first dimension scaled by ``factor``, at least 1."""
    return [(max(1, round(shape[0] * factor)), *shape[1:]) for shape in shapes]


def row_length(shape: Shape) -> int:
    """Elements of one row: of one index of dimension 0, or :data:`FLAT_ROW` in a vector longer than that."""
    if len(shape) == 1:
        return FLAT_ROW if shape[0] > FLAT_ROW else 1
    length = 1
    for size in shape[1:]:
        length *= size
    return length
