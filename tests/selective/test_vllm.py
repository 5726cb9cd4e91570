"""Sparse weight patches, in both directions, by what vLLM requires of them."""

import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import aimfair
from aimfair import Delta
from aimfair.selective.checkpoint import Spec
from aimfair.selective.delta_file import Change, Entry
from aimfair.selective.vllm import SparseWeightPatch, from_patches, to_patches

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def models(dtype):
    torch.manual_seed(0)
    base = {"a": torch.randn(30, 40), "b": torch.randn(70_000), "c": torch.randn(()), "same": torch.randn(5)}
    base = {name: tensor.to(dtype) for name, tensor in base.items()}
    result = {name: torch.where(torch.rand(tensor.shape) < 0.1, -tensor, tensor) for name, tensor in base.items()}
    return base, result | {"c": -base["c"], "same": base["same"]}


def loaded(patches, base):
    """The model that vLLM's loader makes: of each patch a tensor with NaN at the elements to be kept."""
    result = dict(base)
    for patch in patches:
        assert patch.indices.dtype == torch.int32
        assert patch.indices.shape == patch.values.shape == (patch.indices.numel(),)
        assert patch.indices.is_contiguous()
        assert patch.values.is_contiguous()
        flat = torch.full((math.prod(patch.full_shape),), torch.nan, dtype=patch.values.dtype)
        flat.index_copy_(0, patch.indices.long(), patch.values)
        replaced = flat.view(patch.full_shape)
        result[patch.name] = torch.where(replaced.isnan(), result[patch.name], replaced)
    return result


@pytest.mark.parametrize("dtype", DTYPES)
def test_there_and_back(tmp_path, dtype):
    base, result = models(dtype)
    Delta.between(base, result).save(tmp_path / "delta")
    delta = Delta.load(tmp_path / "delta")
    patches = list(to_patches(delta))
    assert [patch.name for patch in patches] == ["a", "b", "c"]
    assert sum(patch.indices.numel() for patch in patches) == delta.nnz
    assert all(torch.equal(tensor, result[name]) for name, tensor in loaded(patches, base).items())
    save_file(base, tmp_path / "base.safetensors")
    back = from_patches(patches, tmp_path / "base.safetensors")
    assert back.reversible
    assert (back.base, back.result) == (delta.base, delta.result)
    back.save(tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "delta").read_bytes()


def test_patches_follow_the_training():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    follower = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), aimfair.ParameterMask.random(model, 0.2))
    recorder = optimizer.record_delta()
    for _ in range(2):
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
        follower = loaded(to_patches(recorder.delta()), follower)
    assert all(torch.equal(tensor, follower[name]) for name, tensor in model.state_dict().items())


def test_patches_in_any_order_and_several_of_a_tensor():
    base = {"x": torch.zeros(6)}
    first = SparseWeightPatch("x", torch.tensor([5, 0], dtype=torch.int32), torch.tensor([1.0, 2.0]), (6,))
    second = SparseWeightPatch("x", torch.tensor([3, 0], dtype=torch.int32), torch.tensor([3.0, 4.0]), (6,))
    nothing = SparseWeightPatch("x", torch.zeros(0, dtype=torch.int32), torch.zeros(0), (6,))
    delta = from_patches([first, second, nothing], base)
    delta.apply_(base)
    assert base["x"].tolist() == [4, 0, 0, 3, 0, 1]
    assert from_patches([], base).nnz == 0


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.tensor([3, 4]), "cannot hold x: it holds float16, bfloat16, float32 and float64"),
        (torch.tensor([3.0, 4.0]).to(torch.float8_e4m3fn), "cannot hold x: it holds float16"),
        (torch.tensor([torch.nan, 4.0]), "cannot hold x: NaN among the values"),
    ],
)
def test_what_a_patch_cannot_hold(tensor, said):
    delta = Delta.between({"x": torch.zeros_like(tensor), "y": torch.zeros(1)}, {"x": tensor, "y": torch.ones(1)})
    with pytest.raises(ValueError, match=said):
        to_patches(delta)


def test_indices_of_32_bits_must_suffice():
    full = list(to_patches(huge(2**31 - 1)))
    assert full[0].indices.tolist() == [2**31 - 2]
    with pytest.raises(ValueError, match="cannot hold x: more than 2,147,483,647 elements"):
        to_patches(huge(2**31))


def huge(numel):
    spec = Spec("BF16", (numel,))
    values = torch.ones(1, dtype=torch.bfloat16).view(torch.int16).numpy().view(spec.bits)
    change = Change.at(numel, torch.tensor([numel - 1]).numpy(), values, None)
    return Delta({"x": Entry(spec, None, None, change)}, False)


def patch(name="x", indices=(0, 1), values=(1.0, 2.0), full_shape=(2, 2), dtype=torch.int32):
    return SparseWeightPatch(name, torch.tensor(indices, dtype=dtype), torch.tensor(values), full_shape)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": "z"}, "the patch of 'z': no such tensor in the model"),
        ({"full_shape": (4,)}, r"the patch of 'x' is torch.float32 \(4,\), the tensor of the model F32 \(2, 2\)"),
        ({"values": (1, 2)}, r"the patch of 'x' is torch.int64 \(2, 2\), the tensor of the model F32"),
        ({"dtype": torch.int64}, r"indices torch.int64 \(2,\) and values \(2,\), expected torch.int32 \(n,\)"),
        ({"values": (1.0,)}, r"indices torch.int32 \(2,\) and values \(1,\), expected"),
        ({"indices": (0, 4)}, "indices outside of the tensor's 4 elements, or twice the same"),
        ({"indices": (-1, 0)}, "indices outside"),
        ({"indices": (1, 1)}, "or twice the same"),
    ],
)
def test_patches_that_do_not_fit(wrong, said):
    with pytest.raises(ValueError, match=said):
        from_patches([patch(**wrong)], {"x": torch.zeros(2, 2)})
