"""select_ where its sample misleads it, and how many passes it takes on a GPU."""

import math
import re

import numpy as np
import pytest
import torch
from torch import Tensor

import aimfair
from aimfair.selective import ops
from aimfair.selective.score import Score

from . import cases
from .test_topk import MILLION, check_against_stable_sort, dirty_mask

EMULATED = aimfair.build_info()["emulated"]

LAUNCHES, MISSED = 6, [3, 4]
"""Of select_ (docs/performance.md), and those that do nothing unless the bracket missed."""


def splitmix64(z: np.ndarray) -> np.ndarray:
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def sampled(n: int) -> Tensor:
    """bool per element of one tensor: whether it is in a sector that the CUDA kernels sample."""
    sectors = min(1 << 19, n // 32) // 4
    stride, places = n // sectors, np.arange(sectors, dtype=np.uint64)
    jitter = (splitmix64(places) & np.uint64(0xFFFFFFFF)) * np.uint64(stride) >> np.uint64(32)
    first = (places * np.uint64(stride) + jitter) // np.uint64(8) * np.uint64(8)
    found = torch.zeros(-(-n // 8) * 8, dtype=torch.bool)
    found.view(-1, 8)[torch.from_numpy(first.astype(np.int64)) // 8] = True
    return found[:n]


def missed(n: int) -> Tensor:
    """The sample sees none of the scores around the threshold."""
    return torch.where(sampled(n), torch.rand(n) + 5, torch.rand(n))


def missed_ties(n: int) -> Tensor:
    return torch.where(sampled(n), 2.0, torch.randint(-1, 2, (n,)).float())


def crowded(n: int) -> Tensor:
    """Far more scores near the threshold than the sample tells: there is no room for the candidates."""
    return torch.where(sampled(n), torch.rand(n), 0.5 + torch.rand(n) * 1e-4)


MISLEADING = {"missed": missed, "missed_ties": missed_ties, "crowded": crowded}


@pytest.mark.parametrize("largest", [True, False], ids=["largest", "smallest"])
@pytest.mark.parametrize("kind", MISLEADING.values(), ids=MISLEADING)
def test_misleading_samples(kind, largest, device):
    check_against_stable_sort([kind(MILLION).to(device)], [MILLION // 100, MILLION // 2], largest)


@pytest.mark.parametrize("kind", MISLEADING.values(), ids=MISLEADING)
def test_nan_and_a_misleading_sample(kind, device):
    scores = [torch.zeros(10, device=device), kind(MILLION).to(device)]
    scores[1][-1] = math.nan
    mask = dirty_mask(scores)
    before = cases.clone(list(mask))
    with pytest.raises(RuntimeError, match=r"a\[1\]"):
        ops.select_(*mask, MILLION // 2, Score("value", scores))
    cases.assert_same(list(mask), before)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.74])
@pytest.mark.parametrize("largest", [True, False], ids=["largest", "smallest"])
def test_a_threshold_between_ties(largest, share, device):
    """The bracket begins and ends in ties; there are scores between, too. Around the boundaries of the ties."""
    n = MILLION
    scores = torch.tensor([-1.0, -0.0, 0.0, 3.0])[torch.randint(4, (n,))]
    scores = torch.where(torch.rand(n) < 0.01, torch.rand(n) * 4 - 1, scores)
    boundary = int((scores > 0).sum() if largest else (scores < 0).sum())
    ks = [boundary - 1, boundary, boundary + 1] if share == 0.25 else [int(n * share)]
    check_against_stable_sort(list(scores.to(device).split([n // 2, 7, n - n // 2 - 7])), ks, largest)


# -- passes -----------------------------------------------------------------------------------------------------------

TIED = {
    "normal": torch.randn,
    "constant": lambda n: torch.full((n,), 0.25),
    "zero": torch.zeros,
    "half_zero": lambda n: torch.randn(n).clamp(min=0),
    "few_values": lambda n: torch.randint(-5, 5, (n,)).float(),
    "two_values": lambda n: (torch.arange(n) % 3 == 0).float(),
}


def waits(capfd: pytest.CaptureFixture[str], scores: list[Tensor], k: int) -> list[int]:
    """How often threads waited, for every launch of select_."""
    capfd.readouterr()
    ops.select_(*dirty_mask(scores), k, Score("value", scores))
    return [int(found) for found in re.findall(r"(\d+) waits$", capfd.readouterr().err, re.MULTILINE)]


@pytest.mark.skipif(not EMULATED, reason="the emulator counts what a launch does")
@pytest.mark.parametrize("kind", TIED.values(), ids=TIED)
def test_ties_take_one_pass(kind, device, monkeypatch, capfd):
    monkeypatch.setenv("AIMFAIR_EMULATOR_TRACE", "1")
    for k in (MILLION // 100, MILLION // 3, MILLION // 3 + 5, MILLION * 3 // 5):
        found = waits(capfd, [kind(MILLION).to(device)], k)
        assert len(found) == LAUNCHES
        assert [i for i, count in enumerate(found) if count == 0] == [0, *MISSED], k


@pytest.mark.skipif(not EMULATED, reason="the emulator counts what a launch does")
@pytest.mark.parametrize("kind", MISLEADING.values(), ids=MISLEADING)
def test_a_missed_bracket_counts(kind, device, monkeypatch, capfd):
    monkeypatch.setenv("AIMFAIR_EMULATOR_TRACE", "1")
    found = waits(capfd, [kind(MILLION).to(device)], MILLION // 2)
    assert all(found[i] > 0 for i in MISSED)
