"""The device of these tests, and the mark that skips them where there is none."""

import pytest
import torch

import aimfair

CUDA = torch.device("cuda")

needs_cuda = pytest.mark.skipif(
    not (torch.cuda.is_available() and aimfair.build_info()["cuda"]),
    reason="needs a CUDA device, and aimfair built with CUDA",
)
