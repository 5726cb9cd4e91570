"""The mask format: pack, unpack, rank and the expansion of row masks."""

import numpy as np
import pytest
import torch

from aimfair.selective import layout, ops, reference

from . import cases
from .cases import DENSITIES, OFFSETS, SHAPES


def dirty_mask(numels: list[int], device: torch.device, offset: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A mask to be overwritten: every word and every count is garbage."""
    bits, rank = layout.empty_mask(numels, device)
    return cases.place(bits.fill_(-1), offset), cases.place(rank.fill_(-7), offset)


def numels_of(shapes: list[cases.Shape]) -> list[int]:
    return [cases.numel_of(shape) for shape in shapes]


def test_first_blocks():
    assert layout.first_blocks([]) == [0]
    assert layout.first_blocks([0, 1, 1024, 1025, 0, 3]) == [0, 0, 1, 2, 4, 4, 5]
    assert layout.first_blocks([2**31 + 1]) == [0, 2**21 + 1]


def test_empty_mask(device):
    bits, rank = layout.empty_mask([1, 1025], device)
    cases.assert_same(bits, torch.zeros(3 * 32, dtype=torch.int32, device=device))
    cases.assert_same(rank, torch.zeros(4, dtype=torch.int64, device=device))


def test_layout_of_one_tensor(device):
    """The format spelled out by numpy: little-endian bits, filled up with zeros to a block of 1024."""
    bools = torch.rand(1500, device=device) < 0.5
    bits, rank = dirty_mask([1500], device)
    ops.pack_bits_(bits, rank, [bools])
    padded = np.zeros(2048, dtype=bool)
    padded[:1500] = bools.cpu().numpy()
    words = np.packbits(padded, bitorder="little").view("<i4")
    assert torch.equal(bits.cpu(), torch.from_numpy(words.astype(np.int32)))
    assert rank.tolist() == [0, int(bools[:1024].sum()), int(bools.sum())]


@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES)
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_pack_unpack_rank(shapes, density, device):
    bools = [cases.place(selected) for selected in cases.random_bools(shapes, density, device)]
    expected = cases.packed(bools, device)

    bits, rank = dirty_mask(numels_of(shapes), device)
    ops.pack_bits_(bits, rank, bools)
    cases.assert_same([bits, rank], list(expected), "packed")

    unpacked = [cases.place(~selected) for selected in bools]
    ops.unpack_bits_(unpacked, bits)
    cases.assert_same(unpacked, bools, "unpacked")

    rank.fill_(-7)
    ops.rank_(rank, bits)
    cases.assert_same(rank, expected[1], "rank")


@pytest.mark.parametrize("blocks", [65_537, 131_200])
def test_rank_of_many_blocks(blocks, device):
    """A running sum cut into more pieces than there are threads to hold them."""
    bits = (torch.rand(blocks * 32, device=device) < 0.5).int()
    rank = torch.full((blocks + 1,), -7, device=device)
    ops.rank_(rank, bits)
    expected = torch.zeros_like(rank)
    expected[1:] = bits.view(-1, 32).sum(1).cumsum(0)
    cases.assert_same(rank, expected, "rank")


@pytest.mark.parametrize("offset", OFFSETS[1:])
def test_misaligned_storage(offset, device):
    shapes = cases.MIXED
    bools = [cases.place(selected, offset) for selected in cases.random_bools(shapes, 0.3, device)]
    bits, rank = dirty_mask(numels_of(shapes), device, offset)
    ops.pack_bits_(bits, rank, bools)
    cases.assert_same([bits, rank], list(cases.packed(bools, device, offset)), "packed")
    unpacked = [cases.place(~selected, offset) for selected in bools]
    ops.unpack_bits_(unpacked, bits)
    cases.assert_same(unpacked, bools, "unpacked")


UNITS = {
    "rows": ([3000, 77, 0, 4096, 33 * 65], [30, 11, 0, 4, 33]),
    "whole_tensors": ([3000, 77, 0, 1, 4096], [1, 1, 1, 1, 1]),
    "elements": ([3000, 77, 0, 1], [3000, 77, 0, 1]),
    "one_long_row": ([70_000, 1], [1, 1]),
    "many_rows": ([5 * 3000], [3000]),
    "rows_of_blocks": ([6 * 1024, 3 * 2048, 1024 * 31], [6, 3, 31]),
    "unaligned_rows": ([2000 * 31, 300 * 33, 500 * 129, 7 * 9001], [2000, 300, 500, 7]),
    "larger_tensors_of_short_rows": ([100_000, 66_666, 40_000], [100_000, 22_222, 2500]),
    "nothing": ([], []),
}


@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES)
@pytest.mark.parametrize(("numels", "units"), UNITS.values(), ids=UNITS)
def test_expand_units(numels, units, density, device):
    unit_bools = cases.random_bools([(count,) for count in units], density, device)
    unit_bits, _ = cases.packed(unit_bools, device)
    bits, rank = dirty_mask(numels, device)
    ops.expand_units_(bits, rank, unit_bits, numels, units)

    elements = [
        selected.repeat_interleave(numel // count if count else 0)
        for selected, numel, count in zip(unit_bools, numels, units, strict=True)
    ]
    cases.assert_same([bits, rank], list(cases.packed(elements, device)), "expanded")


def test_reference_unpacks_what_it_packs(device):
    """The other tests compare with the reference's packing; this is its own check."""
    bools = cases.random_bools(SHAPES["block_edges"], 0.5, device)
    bits, rank = cases.packed(bools, device)
    unpacked = [torch.empty_like(selected) for selected in bools]
    reference.unpack_bits_(unpacked, bits)
    cases.assert_same(unpacked, bools)
    assert int(rank[-1]) == sum(int(selected.sum()) for selected in bools)
