"""Single precision as it is written: no TF32, which torch's convolutions use on GPUs unless they are told otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """Within, float32 convolutions and products keep 23 bits, not 10; a wrong engine could hide in the others."""
    matmul, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolutions.allow_tf32
    matmul.allow_tf32 = convolutions.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, convolutions.allow_tf32 = before
