"""ParameterMask: construction, algebra, checks against a model, and files that are whole or refused."""

import copy
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import aimfair
from aimfair.selective.mask import KIND, VERSION

from .models import Toy, data_parallel, toy


def random_bools(model: nn.Module, density: float = 0.3) -> dict[str, Tensor]:
    return {name: torch.rand(p.shape, device=p.device) < density for name, p in model.named_parameters()}


@pytest.fixture
def model(device) -> Toy:
    return toy(device)


# -- making one -------------------------------------------------------------------------------------------------------


def test_round_trip_through_bool(model):
    bools = random_bools(model)
    mask = aimfair.ParameterMask.from_bool(bools)
    assert mask.names == tuple(dict(model.named_parameters()))
    assert mask.shapes == tuple(tuple(p.shape) for p in model.parameters())
    for name, selected in mask.to_bool().items():
        assert torch.equal(selected, bools[name])
        assert torch.equal(mask.bool_of(name), bools[name])
    assert mask.nnz_per_tensor == [int(selected.sum()) for selected in bools.values()]
    assert mask.nnz == sum(mask.nnz_per_tensor)
    assert mask.density == mask.nnz / sum(p.numel() for p in model.parameters())


def test_from_bool_with_a_model_fills_up_and_orders(model):
    bools = random_bools(model)
    some = {name: bools[name] for name in ("head.weight", "conv.bias")}
    mask = aimfair.ParameterMask.from_bool(some, model)
    assert mask.names == tuple(dict(model.named_parameters()))
    assert mask.nnz == sum(int(selected.sum()) for selected in some.values())
    assert torch.equal(mask.bool_of("conv.bias"), some["conv.bias"])


def test_from_bool_takes_views(model):
    transposed = (torch.rand(33, 40, device=model.scale.device) < 0.5).t()
    mask = aimfair.ParameterMask.from_bool({"w": transposed})
    assert torch.equal(mask.bool_of("w"), transposed)


@pytest.mark.parametrize(("bools", "error"), [
    ({"head.weigth": torch.ones(5, 33, dtype=torch.bool)}, "head.weigth"),
    ({"head.weight": torch.ones(33, 5, dtype=torch.bool)}, r"head\.weight.*\(33, 5\).*\(5, 33\)"),
])  # fmt: skip
def test_from_bool_refuses(model, bools, error):
    with pytest.raises(ValueError, match=error):
        aimfair.ParameterMask.from_bool(bools, model)


def test_from_bool_refuses_other_dtypes():
    with pytest.raises(TypeError, match=r"'w' is torch\.float32"):
        aimfair.ParameterMask.from_bool({"w": torch.ones(3)})


def test_full_and_empty(model):
    full, empty = aimfair.ParameterMask.full(model), aimfair.ParameterMask.empty(model)
    assert all(selected.all() for selected in full.to_bool().values())
    assert full == aimfair.ParameterMask.from_bool(
        {n: torch.ones_like(p, dtype=torch.bool) for n, p in model.named_parameters()}
    )
    assert (full.nnz, full.density) == (full.numel, 1.0)
    assert (empty.nnz, empty.density) == (0, 0.0)
    assert empty == ~full


def test_from_names(model):
    by_predicate = aimfair.ParameterMask.from_names(model, lambda name: name.startswith("head."))
    by_name = aimfair.ParameterMask.from_names(model, ["head.bias", "head.weight"])
    assert by_predicate == by_name
    assert {name for name, selected in by_name.to_bool().items() if selected.any()} == {"head.weight", "head.bias"}
    assert by_name.nnz == model.head.weight.numel() + model.head.bias.numel()
    with pytest.raises(ValueError, match=r"heat\.bias"):
        aimfair.ParameterMask.from_names(model, ["heat.bias"])


@pytest.mark.parametrize("density", [0.001, 0.1, 0.5, 1.0])
def test_random_has_the_exact_size_and_depends_on_the_seed_only(model, density):
    mask = aimfair.ParameterMask.random(model, density, seed=3)
    assert mask.nnz == round(density * mask.numel)
    assert mask == aimfair.ParameterMask.random(toy(), density, seed=3)
    assert density == 1.0 or mask != aimfair.ParameterMask.random(model, density, seed=4)


def test_random_rows_and_tensors(model):
    rows = aimfair.ParameterMask.random(model, k=20, granularity="row")
    taken = 0
    for name, selected in rows.to_bool().items():
        units = selected.flatten(1) if selected.dim() >= 2 else selected.reshape(-1, 1)
        assert torch.equal(units.any(1), units.all(1)), name
        taken += int(units.any(1).sum())
    assert taken == 20
    tensors = aimfair.ParameterMask.random(model, k=4, granularity="tensor").to_bool().values()
    assert sum(bool(selected.any()) for selected in tensors) == 4
    assert all(selected.all() or not selected.any() for selected in tensors)


@pytest.mark.parametrize("arguments", [
    {"density": 0.0}, {"density": 1.5}, {"density": 1e-6}, {"k": 0}, {"k": 10**6}, {}, {"density": 0.1, "k": 3}
])  # fmt: skip
def test_random_refuses_sizes_that_make_no_mask(model, arguments):
    with pytest.raises(ValueError, match=r"density|k="):
        aimfair.ParameterMask.random(model, **arguments)


# -- the parameter list -----------------------------------------------------------------------------------------------


def test_list_is_what_requires_a_gradient(model):
    model.conv.requires_grad_(False)
    names = aimfair.ParameterMask.full(model).names
    assert names == tuple(name for name, p in model.named_parameters() if p.requires_grad)
    assert "conv.weight" not in names


def test_tied_parameters_count_once():
    tied = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    tied[1].weight = tied[0].weight
    assert aimfair.ParameterMask.full(tied).names == ("0.weight",)
    assert aimfair.ParameterMask.full([("a", tied[0].weight), ("b", tied[1].weight)]).names == ("a",)


def test_compiled_and_wrapped_models_have_the_names_of_the_plain_one(model):
    plain = aimfair.ParameterMask.full(model).names
    assert aimfair.ParameterMask.full(torch.compile(model, backend="eager")).names == plain
    assert aimfair.ParameterMask.full(nn.Sequential(torch.compile(model, backend="eager"))).names == tuple(
        f"0.{name}" for name in plain
    )
    assert aimfair.ParameterMask.full(data_parallel(model)).names == plain


def test_parameters_without_names_are_refused(model):
    with pytest.raises(TypeError, match="named_parameters"):
        aimfair.ParameterMask.full(model.parameters())
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        aimfair.ParameterMask.full(model.requires_grad_(False))


# -- algebra ----------------------------------------------------------------------------------------------------------


def test_algebra_is_that_of_bool_tensors(model):
    x, y = random_bools(model, 0.4), random_bools(model, 0.6)
    a, b = aimfair.ParameterMask.from_bool(x), aimfair.ParameterMask.from_bool(y)
    expected = {
        "and": (a & b, lambda p, q: p & q),
        "or": (a | b, lambda p, q: p | q),
        "xor": (a ^ b, lambda p, q: p ^ q),
        "minus": (a - b, lambda p, q: p & ~q),
        "not": (~a, lambda p, _: ~p),
    }
    for name, (mask, operation) in expected.items():
        bools = {key: operation(x[key], y[key]) for key in x}
        assert mask == aimfair.ParameterMask.from_bool(bools), name
        assert mask.nnz == sum(int(selected.sum()) for selected in bools.values()), name
    assert ~~a == a
    assert a != b
    assert a != "a mask"


def test_algebra_refuses_other_parameters(model):
    mask = aimfair.ParameterMask.full(model)
    with pytest.raises(ValueError, match=r"different parameters: .*body\.0\.bias"):
        mask & aimfair.ParameterMask.full(model.body)
    backwards = aimfair.ParameterMask.full(dict(reversed(list(model.named_parameters()))))
    with pytest.raises(ValueError, match="another order"):
        mask | backwards


# -- reading ----------------------------------------------------------------------------------------------------------


def test_digest_knows_names_shapes_and_bits():
    ones = torch.ones(2, 3, dtype=torch.bool)
    mask = aimfair.ParameterMask.from_bool({"w": ones})
    assert mask.digest == aimfair.ParameterMask.from_bool({"w": ones.clone()}).digest
    # Frozen: a digest on disk must mean the same for ever.
    assert mask.digest == "a57a1e95c249eaedc454a646eda52fb72aefb76dbe4b2ce5fa547844a65a4943"
    others = [{"v": ones}, {"w": ones.view(3, 2)}, {"w": torch.zeros_like(ones)}]
    assert mask.digest not in [aimfair.ParameterMask.from_bool(other).digest for other in others]


def test_summary(model):
    mask = aimfair.ParameterMask.from_names(model, ["conv.bias", "body.1.weight"])
    summary = mask.summary()
    assert [(row.name, row.numel, row.nnz) for row in summary.blocks] == [
        ("scale", 1, 0), ("empty", 0, 0), ("unused", 6, 0), ("conv", 224, 8), ("norm", 16, 0),
        ("body.0", 2920, 0), ("body.1", 1353, 1320), ("head", 170, 0),
    ]  # fmt: skip
    assert [row.nnz for row in summary.tensors] == mask.nnz_per_tensor
    assert (summary.total.numel, summary.total.nnz, summary.total.density) == (mask.numel, mask.nnz, mask.density)
    assert [row.name for row in mask.summary(depth=1).blocks][-2:] == ["body", "head"]
    lines = str(summary).splitlines()
    assert lines[7].split() == ["body.1", "1,353", "1,320", "97.56%"]
    assert lines[-1].split() == ["total", f"{mask.numel:,}", f"{mask.nnz:,}", f"{mask.density:.2%}"]
    assert f"{mask.nnz:,} of {mask.numel:,}" in repr(mask)


def test_copies(model):
    mask = aimfair.ParameterMask.random(model, 0.2)
    assert copy.deepcopy(mask) == mask
    assert pickle.loads(pickle.dumps(mask)) == mask
    assert mask.to(mask.device) is mask


# -- a model ----------------------------------------------------------------------------------------------------------


def test_check_lists_what_differs(model):
    mask = aimfair.ParameterMask.full(model)
    mask.check(model)
    other = toy(model.scale.device)
    other.head = nn.Linear(33, 7)
    other.extra = nn.Linear(2, 2)
    del other.conv
    with pytest.raises(ValueError, match="another model") as error:
        mask.check(other)
    message = str(error.value)
    assert "missing: conv.weight, conv.bias" in message
    assert "not in the mask: extra.weight, extra.bias" in message
    assert "head.weight (7, 33) instead of (5, 33)" in message
    assert "\n" not in message


def test_freeze_unselected(model):
    mask = aimfair.ParameterMask.from_names(model, ["body.1.weight", "head.bias"])
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    frozen = mask.freeze_unselected(model)
    assert set(frozen) == set(mask.names) - {"body.1.weight", "head.bias"}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"body.1.weight", "head.bias"}
    assert model.conv.weight.grad is None
    mask.check(model)  # frozen parameters are still those of the mask


# -- files ------------------------------------------------------------------------------------------------------------


def test_file_round_trip(model, tmp_path):
    mask = aimfair.ParameterMask.random(model, 0.2)
    path = tmp_path / "mask.safetensors"
    mask.save(path)
    mask.save(path)  # replaces
    loaded = aimfair.ParameterMask.load(path)
    assert loaded == mask.to("cpu")
    assert (loaded.digest, loaded.nnz_per_tensor) == (mask.digest, mask.nnz_per_tensor)
    assert aimfair.ParameterMask.load(path, model).device == model.scale.device
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]  # no temporary is left
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert loaded.bits.tolist() == mask.bits.tolist()  # owns its memory


def test_load_refuses_another_model(model, tmp_path):
    path = tmp_path / "mask.safetensors"
    aimfair.ParameterMask.full(model).save(path)
    with pytest.raises(ValueError, match=r"mask\.safetensors: .*missing: scale, empty, unused, conv\.weight"):
        aimfair.ParameterMask.load(path, model.body)


def test_failed_save_keeps_the_old_file(model, tmp_path, monkeypatch):
    path = tmp_path / "mask.safetensors"
    mask = aimfair.ParameterMask.full(model)
    mask.save(path)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("aimfair.selective.storage.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        (~mask).save(path)
    assert aimfair.ParameterMask.load(path) == mask.to("cpu")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_save_reaches_the_disk_before_and_after_the_name_changes(model, tmp_path, monkeypatch):
    path, calls = tmp_path / "mask.safetensors", []
    sync, replace = os.fsync, os.replace

    def recorded_sync(descriptor: int) -> None:
        calls.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).suffix or "folder")
        sync(descriptor)

    def recorded_replace(old: Path, new: Path) -> None:
        calls.append(f"{old.suffix} to {new.suffix}")
        replace(old, new)

    monkeypatch.setattr("aimfair.selective.storage.os.fsync", recorded_sync)
    monkeypatch.setattr("aimfair.selective.storage.os.replace", recorded_replace)
    aimfair.ParameterMask.full(model).save(path)
    assert calls == [".tmp", ".tmp to .safetensors", "folder"]


def test_save_into_a_missing_folder_names_the_file(model, tmp_path):
    with pytest.raises(OSError, match=r"nowhere/mask\.safetensors"):
        aimfair.ParameterMask.full(model).save(tmp_path / "nowhere" / "mask.safetensors")


def assert_refused(path: Path, reason: str = "aimfair.mask") -> None:
    with pytest.raises(ValueError, match=reason) as error:
        aimfair.ParameterMask.load(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_truncated_at_every_length_is_refused(tmp_path):
    path, cut = tmp_path / "mask.safetensors", tmp_path / "cut.safetensors"
    aimfair.ParameterMask.from_bool({"w": torch.ones(40, dtype=torch.bool)}).save(path)
    content = path.read_bytes()
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        assert_refused(cut)
    cut.write_bytes(content + b"\0")
    assert_refused(cut)


def test_flipped_bits_are_refused(tmp_path):
    path = tmp_path / "mask.safetensors"
    aimfair.ParameterMask.from_bool({"w": torch.rand(1500) < 0.5}).save(path)
    content = bytearray(path.read_bytes())
    content[-200] ^= 1  # inside the first block
    path.write_bytes(content)
    assert_refused(path, "digest")


@pytest.mark.parametrize("content", [b"", b"not a mask", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"[]"], ids=repr)
def test_foreign_files_are_refused(tmp_path, content):
    path = tmp_path / "mask.safetensors"
    path.write_bytes(content)
    assert_refused(path)


def test_the_same_mask_is_the_same_bytes(tmp_path):
    mask = aimfair.ParameterMask.from_bool({"w": torch.rand(1500) < 0.5, "v": torch.rand(3, 5) < 0.5})
    contents = set()
    for number in range(8):
        mask.save(tmp_path / f"{number}.safetensors")
        contents.add((tmp_path / f"{number}.safetensors").read_bytes())
    assert len(contents) == 1


def test_files_with_an_entry_for_every_value_are_read(tmp_path):
    path = tmp_path / "mask.safetensors"
    mask = aimfair.ParameterMask.from_bool({"w": torch.rand(1500) < 0.5})
    values = {"version": VERSION, "names": mask.names, "shapes": mask.shapes, "digest": mask.digest}
    save_file({"bits": mask.bits}, path, {"kind": KIND} | {key: json.dumps(value) for key, value in values.items()})
    assert aimfair.ParameterMask.load(path) == mask
    save_file({"bits": mask.bits}, path, {"aimfair": "[]"})
    assert_refused(path, "found unknown kind")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        aimfair.ParameterMask.load(tmp_path / "mask.safetensors")


def test_other_safetensors_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"bits": torch.zeros(32, dtype=torch.int32)}, path)
    assert_refused(path, "expected aimfair.mask, version 1, found unknown kind")
    save_file({"bits": torch.zeros(32, dtype=torch.int32)}, path, {"kind": KIND, "version": str(VERSION + 1)})
    assert_refused(path, f"version {VERSION + 1}")


@pytest.mark.parametrize(("changes", "reason"), [
    ({"names": ["w", "w"]}, "parameter list"),
    ({"names": ["w"]}, "parameter list"),
    ({"names": 3}, "malformed"),
    ({"shapes": [[40], ["x"]]}, "malformed"),
    ({"shapes": [[40], [-2000]]}, "parameter list"),
    ({"shapes": [[40], [2**62]]}, "bits are"),
    ({"shapes": [[40], [70]]}, "past the end"),
    ({"names": ["w", "x"]}, "digest"),
    ({"digest": "0" * 64}, "digest"),
    ({"extra": 1}, "unexpected contents"),
])  # fmt: skip
def test_contradictory_contents_are_refused(tmp_path, changes, reason):
    path = tmp_path / "mask.safetensors"
    mask = aimfair.ParameterMask.from_bool(
        {"w": torch.ones(40, dtype=torch.bool), "v": torch.ones(90, dtype=torch.bool)}
    )
    header = {"names": mask.names, "shapes": mask.shapes, "digest": mask.digest} | changes
    metadata = {"kind": KIND, "version": str(VERSION)} | {key: json.dumps(value) for key, value in header.items()}
    save_file({"bits": mask.bits}, path, metadata)
    assert_refused(path, reason)


def test_repeated_keys_are_refused(tmp_path):
    path = tmp_path / "mask.safetensors"
    aimfair.ParameterMask.from_bool({"w": torch.ones(40, dtype=torch.bool)}).save(path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].decode().rstrip()
    twice = header.replace('"bits":', '"bits":{"dtype":"I32","shape":[32],"data_offsets":[0,128]},"bits":', 1).encode()
    path.write_bytes(len(twice).to_bytes(8, "little") + twice + content[8 + length :])
    assert load_file(path).keys() == {"bits"}  # safetensors itself takes it
    assert_refused(path, "'bits' twice")
