"""Fixtures of the whole suite, and its order."""

import zlib

import pytest
import torch

LONG = (
    "test_cpp_package.py",
    "test_cuda_build.py",
    "test_digits_diffusion.py",
    "test_end_to_end.py",
    "test_families.py",
    "test_real_configs.py",
    "test_distributed.py",
)
"""Files that take most of the time. They come first, so that of several processes none is left alone with one."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)  # stable: otherwise as they were


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    device = torch.device(request.config.getoption("--device"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch sees no CUDA device")
    torch.backends.cudnn.deterministic = True  # tests compare the gradients of two backward passes
    return device


_THREADS = torch.get_num_threads()


@pytest.fixture(autouse=True)
def threads() -> None:
    """A run in an earlier test may have taken another number, on which last bits depend."""
    if torch.get_num_threads() != _THREADS:
        torch.set_num_threads(_THREADS)


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> None:
    """Every test draws its own inputs, and the same ones in every run."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))
