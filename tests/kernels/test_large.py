"""One tensor of more than 2^31 elements. About 14 GB of memory and, on a CPU, a few minutes."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from aimfair.selective import layout, ops
from aimfair.selective.score import Score

N = 2**31 + 1000
PERIOD = 2**20
CHUNK = 2**26

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def freed(device: torch.device) -> Iterator[None]:
    """What torch keeps of a GPU's memory would be lacking in the next test, in other sizes."""
    yield
    if device.type == "cuda":
        torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def pattern(device: torch.device) -> Tensor:
    """fp16 values in [0, 1), one of them the unique largest; repeated to fill the large tensors."""
    values = torch.rand(PERIOD, generator=torch.Generator().manual_seed(0)).half().clamp_(max=0.5)
    values[777] = 0.75
    return values.to(device)


@pytest.fixture(scope="module")
def winners(device: torch.device) -> Tensor:
    """Indices of outstanding elements: around the limits of 31-bit and 32-bit arithmetic, and anywhere."""
    edges = torch.tensor([0, 1, 1023, 1024, 2**30, 2**31 - 2, 2**31 - 1, 2**31, 2**31 + 1, N - 2, N - 1])
    anywhere = torch.randint(N, (500,), generator=torch.Generator().manual_seed(1))
    return torch.cat([edges, anywhere]).unique().to(device)


def filled(pattern: Tensor) -> Tensor:
    """fp16 [N]: the pattern over and over."""
    tensor = torch.empty(N, dtype=torch.float16, device=pattern.device)
    repeats = N // PERIOD
    tensor[: repeats * PERIOD].view(repeats, PERIOD).copy_(pattern)
    tensor[repeats * PERIOD :] = pattern[: N % PERIOD]
    return tensor


def chunks() -> Iterator[slice]:
    for begin in range(0, N, CHUNK):
        yield slice(begin, min(begin + CHUNK, N))


def test_accumulate_select_and_step(pattern: Tensor, winners: Tensor, device: torch.device) -> None:
    grads = filled(pattern)
    grads[winners] = 2.0
    sums = torch.zeros(N, device=device)
    square_norms, nonfinite = torch.zeros(1, dtype=torch.float64, device=device), torch.zeros(1, device=device).long()
    ops.accumulate_([grads], [sums], [], square_norms, nonfinite, weight=0.5)
    exact_norm = 0.0
    for part in chunks():
        expected = grads[part].float()
        assert torch.equal(sums[part], expected * 0.5)
        exact_norm += float(expected.square().double().sum())
    assert square_norms.item() == pytest.approx(exact_norm, rel=1e-6)
    assert nonfinite.item() == 0

    # All winners, and then the first 1000 of the many ties at the peak of the pattern.
    peaks = torch.arange(777, N, PERIOD, device=device)
    peaks = peaks[~torch.isin(peaks, winners)][:1000]
    chosen = torch.cat([winners, peaks]).sort().values
    bits, rank = layout.empty_mask([N], device)
    ops.select_(bits, rank, chosen.numel(), Score("magnitude", [sums]))
    del sums
    assert torch.equal(set_bits(bits), chosen)
    starts = torch.arange(rank.numel(), device=device) * layout.BLOCK
    assert torch.equal(rank, torch.searchsorted(chosen, starts))

    params = filled(pattern)
    momentum = torch.ones(chosen.numel(), device=device)
    ops.masked_sgd_(
        [params], [grads], [momentum], [torch.ones(1, device=device)], lr=torch.tensor(0.5, device=device),
        momentum=0.5, weight_decay=0.25, bits=bits, rank=rank, first_blocks=[0], compact=True,
    )  # fmt: skip
    old = pattern[chosen % PERIOD].float()
    expected_momentum = 0.5 * torch.ones_like(old) + (grads[chosen].float() + 0.25 * old)
    assert torch.equal(momentum, expected_momentum)
    assert torch.equal(params[chosen], (old - 0.5 * expected_momentum).half())
    params[chosen] = old.half()
    assert_filled(params, pattern)


def set_bits(bits: Tensor) -> Tensor:
    """Indices of the set bits of a sparse mask."""
    words = bits.nonzero().flatten()
    ones = (bits[words, None] >> torch.arange(32, dtype=torch.int32, device=bits.device)) & 1
    word, bit = ones.nonzero(as_tuple=True)
    return words[word] * 32 + bit


def assert_filled(tensor: Tensor, pattern: Tensor) -> None:
    repeats = N // PERIOD
    rows = tensor[: repeats * PERIOD].view(repeats, PERIOD)
    assert all(torch.equal(row, pattern) for row in rows)
    assert torch.equal(tensor[repeats * PERIOD :], pattern[: N % PERIOD])


def test_pack_and_unpack(winners: Tensor, device: torch.device) -> None:
    bools = torch.zeros(N, dtype=torch.bool, device=device)
    bools[winners] = True
    bits, rank = layout.empty_mask([N], device)
    ops.pack_bits_(bits, rank, [bools])
    assert torch.equal(set_bits(bits), winners)
    assert int(rank[-1]) == winners.numel()
    unpacked = torch.ones(N, dtype=torch.bool, device=device)
    ops.unpack_bits_([unpacked], bits)
    assert torch.equal(unpacked, bools)


def test_expand_units(device: torch.device) -> None:
    """Two rows of more than 2^30 elements each, of which the second is selected."""
    bits, rank = layout.empty_mask([N], device)
    ops.expand_units_(bits, rank, torch.tensor([2] + [0] * 31, dtype=torch.int32, device=device), [N], [2])
    assert int(rank[-1]) == N // 2
    assert not bits[: N // 64].any()
    assert bits[-layout.WORDS_PER_BLOCK :].any()
    assert rank[N // 2 // layout.BLOCK] == 0
