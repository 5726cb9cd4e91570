"""Deltas in memory and on disk: exact to the bit, refused by name otherwise."""

import json
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import aimfair
from aimfair import Delta
from aimfair.selective import checkpoint, delta_file
from aimfair.selective import delta as delta_module
from aimfair.selective.delta_file import Change

DTYPES = [
    torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.int16, torch.uint8,
    torch.bool, torch.float8_e4m3fn, torch.complex64,
]  # fmt: skip


def same_bits(one, other):
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and torch.equal(*(t.reshape(-1).contiguous().view(torch.uint8) for t in (one[name], other[name])))
        for name in one
    )


def random_bits(shape, dtype):
    """Any bits at all: NaN with payloads, infinities, -0.0, subnormal numbers."""
    if dtype == torch.bool:
        return torch.rand(shape) < 0.5
    size = torch.Size(shape).numel() * dtype.itemsize
    return torch.randint(0, 256, (size,), dtype=torch.uint8).view(dtype).reshape(shape)


def changed(state, share=0.1):
    """A copy in which a share of the elements of every tensor has other bits, where it has any."""
    result = {}
    for name, tensor in state.items():
        other = random_bits(tensor.shape, tensor.dtype)
        result[name] = torch.where(torch.rand(tensor.shape) < share, other, tensor)
    return result


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """A tensor is read, and patched, in several pieces."""
    monkeypatch.setattr(checkpoint, "PIECE", 64)
    monkeypatch.setattr(delta_module, "_AT_ONCE", 64)


@pytest.fixture
def state():
    return {str(dtype): random_bits((15, 21), dtype) for dtype in DTYPES} | {
        "scalar": torch.tensor(3), "empty": torch.empty(0, 4), "same": torch.randn(8), "wide": torch.randn(70000),
    }  # fmt: skip


@pytest.fixture
def result(state):
    return changed(state) | {"same": state["same"], "scalar": torch.tensor(4)}


@pytest.fixture
def files(tmp_path, state, result):
    """The models as files, the second in another order."""
    save_file(state, tmp_path / "base.safetensors", {"format": "pt"})
    save_file(dict(reversed(result.items())), tmp_path / "result.safetensors")
    return tmp_path / "base.safetensors", tmp_path / "result.safetensors"


def sharded(folder, state, shards=3):
    folder.mkdir()
    names = list(state)
    parts = [names[number::shards] for number in range(shards)]
    shard_of = {}
    for number, part in enumerate(parts):
        file = f"model-{number}.safetensors"
        save_file({name: state[name] for name in part}, folder / file)
        shard_of |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shard_of}))
    (folder / "config.json").write_text("{}")
    (folder / "export.json").write_text("{}")
    (folder / "pytorch_model.bin").write_text("older weights")
    return folder


def load_folder(folder):
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


# -- round trips ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.001, 0.1, 1.0])
def test_files_are_converted_to_the_bit(tmp_path, state, share):
    result = changed(state, share)
    save_file(state, tmp_path / "base")
    save_file(result, tmp_path / "result")
    delta = Delta.make(tmp_path / "base", tmp_path / "result", tmp_path / "delta")
    delta.apply(tmp_path / "base", tmp_path / "to" / "applied")
    assert same_bits(load_file(tmp_path / "to" / "applied"), result)
    delta.revert(tmp_path / "result", tmp_path / "reverted")
    assert same_bits(load_file(tmp_path / "reverted"), state)
    assert delta.verify(tmp_path / "to" / "applied").is_result
    assert delta.verify(tmp_path / "reverted").is_base


def test_a_model_is_converted_in_place(state, result, device):
    delta = Delta.between(state, result)
    model = {name: tensor.to(device, copy=True) for name, tensor in state.items()}
    delta.apply_(model)
    assert same_bits({name: tensor.cpu() for name, tensor in model.items()}, result)
    assert delta.verify(model).is_result
    delta.revert_(model)
    assert same_bits({name: tensor.cpu() for name, tensor in model.items()}, state)
    assert delta.verify(model).is_base


def test_only_what_differs_is_held(state, result):
    delta = Delta.between(state, result)
    differing = {
        name: (state[name].reshape(-1).view(torch.uint8) != result[name].reshape(-1).view(torch.uint8))
        .view(-1, max(state[name].element_size(), 1)).any(1).nonzero().squeeze(1).tolist()
        for name in state
    }  # fmt: skip
    assert {name: change.positions().tolist() for name, change in delta.changes.items()} == {
        name: where for name, where in differing.items() if where
    }
    assert delta.nnz == sum(map(len, differing.values()))
    assert delta.summary().total.nnz == delta.nnz


def test_sharded_folders(tmp_path, state, result, files):
    base = sharded(tmp_path / "shards", state)
    delta = Delta.make(base, files[1], tmp_path / "delta")
    assert delta.base == Delta.make(files[0], files[1], tmp_path / "delta").base  # whatever files hold the tensors
    delta.apply(base, tmp_path / "applied")
    assert same_bits(load_folder(tmp_path / "applied"), result)
    assert {file.name for file in (tmp_path / "applied").iterdir()} == {
        "model-0.safetensors", "model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json",
        "config.json",
    }  # fmt: skip
    for file in base.glob("*.safetensors"):  # the layout is kept
        assert (tmp_path / "applied" / file.name).stat().st_size == file.stat().st_size
    assert delta.verify(tmp_path / "applied").is_result


def test_a_file_may_be_converted_in_place(files, result, tmp_path):
    delta = Delta.make(*files, tmp_path / "delta")
    delta.apply(files[0], files[0])
    assert same_bits(load_file(files[0]), result)


def test_saving_is_deterministic_and_complete(tmp_path, state):
    delta = Delta.between(state, changed(state, 0.01))
    delta.save(tmp_path / "one")
    Delta.load(tmp_path / "one").save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    loaded = Delta.load(tmp_path / "two")
    assert (loaded.base, loaded.result, repr(loaded)) == (delta.base, delta.result, repr(delta))
    held = load_file(tmp_path / "one")  # any reader of safetensors
    name = "wide"
    assert held[f"{name}.values"].dtype == torch.float32
    assert same_bits({"": state[name].reshape(-1)[held[f"{name}.indices"].long()]}, {"": held[f"{name}.old_values"]})


def test_the_smaller_of_indices_and_bits(state):
    for numel, nnz, width in [(200, 20, 1), (300, 10, 2), (70000, 100, 4)]:
        change = Change.at(numel, np.sort(np.random.permutation(numel)[:nnz]), np.zeros(nnz, "<u4"), None)
        assert (change.packed, change.where.itemsize) == (False, width)
    for numel, nnz in [(200, 26), (300, 20), (70000, 2200), (9, 9)]:
        positions = np.sort(np.random.permutation(numel)[:nnz])
        change = Change.at(numel, positions, np.zeros(nnz, "<u4"), None)
        assert change.packed
        assert change.where.nbytes == -(-numel // 8)
        assert (change.positions() == positions).all()


def test_bits_are_those_of_a_mask():
    mask = aimfair.ParameterMask.random({"x": nn.Parameter(torch.zeros(3, 1000))}, 0.3)
    positions = mask.bool_of("x").view(-1).nonzero().squeeze(1).numpy()
    change = Change.at(3000, positions, np.zeros(len(positions), "<u4"), None)
    assert (mask.bits.numpy().view(np.uint8)[:375] == change.where).all()


def test_memory_is_bounded_by_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "PIECE", 1 << 16)
    state = {"x": torch.zeros(4 << 20), "y": torch.zeros(4 << 20)}  # 16 MB each
    save_file(state, tmp_path / "base")
    state["x"][::1000] = 1
    save_file(state, tmp_path / "result")
    del state
    tracemalloc.start()
    delta = Delta.make(tmp_path / "base", tmp_path / "result", tmp_path / "delta")
    delta.apply(tmp_path / "base", tmp_path / "applied")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6
    assert delta.nnz == 4195


# -- models --------------------------------------------------------------------------------------------


def test_buffers_belong_to_a_result():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(torch.randn(2, 3, 8, 8))
    delta = Delta.between(before, model)
    assert delta.changes.keys() == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    delta.revert_(model)
    assert same_bits(model.state_dict(), before)


@pytest.mark.parametrize("in_file", [("one.weight",), ("one.weight", "two.weight")])
def test_tied_tensors(in_file):
    model = nn.ModuleDict({"one": nn.Linear(4, 4, bias=False), "two": nn.Linear(4, 4, bias=False)})
    model["two"].weight = model["one"].weight
    before = model["one"].weight.detach().clone()
    after = changed({"": before}, 0.5)[""]
    delta = Delta.between(dict.fromkeys(in_file, before), dict.fromkeys(in_file, after))
    delta.apply_(model)
    assert same_bits({"": model["two"].weight.detach()}, {"": after})
    assert delta.verify(model).is_result
    delta.revert_(model)
    assert same_bits({"": model["two"].weight.detach()}, {"": before})


def test_tied_tensors_that_the_delta_treats_differently():
    weight = torch.zeros(3)
    delta = Delta.between({"a": weight, "b": weight}, {"a": torch.ones(3), "b": weight})
    with pytest.raises(ValueError, match="'a' and 'b' are one tensor in the model and differ in the delta"):
        delta.apply_({"a": weight, "b": weight})
    assert not weight.any()


def test_memory_that_is_not_contiguous():
    before = torch.randn(2, 3, 4, 5)
    after = changed({"": before})[""]
    delta = Delta.between({"x": before}, {"x": after.to(memory_format=torch.channels_last)})
    model = {"x": before.to(memory_format=torch.channels_last)}
    delta.apply_(model)
    assert model["x"].is_contiguous(memory_format=torch.channels_last)
    assert same_bits(model, {"x": after})


def test_wrappers_and_compiled_modules():
    model = nn.Linear(3, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    delta = Delta.between(before, changed(before, 1.0))
    delta.apply_(nn.DataParallel(model))
    assert delta.verify(model).is_result
    delta.revert_(nn.ModuleDict({"_orig_mod": model}))  # as torch.compile wraps it
    assert delta.verify(model).is_base


def test_autograd_sees_the_change():
    model = nn.Linear(3, 2)
    delta = Delta.between(model, changed(model.state_dict(), 1.0))
    x = torch.randn(1, 3, requires_grad=True)
    loss = model(x).sum()
    delta.apply_(model)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# -- refusals ------------------------------------------------------------------------------------------


def test_another_base_is_refused_by_name(tmp_path, files, state):
    delta = Delta.make(*files, tmp_path / "delta")
    state["same"] += 1  # a tensor that the delta leaves alone
    save_file(state, tmp_path / "other")
    with pytest.raises(ValueError, match=r"other: not the base of the delta: same differ"):
        delta.apply(tmp_path / "other", tmp_path / "to")
    with pytest.raises(ValueError, match=r"base.safetensors: not the result of the delta: .* and \d+ more"):
        delta.revert(files[0], tmp_path / "to")
    assert not (tmp_path / "to").exists()
    verification = delta.verify(tmp_path / "other")
    assert verification.differing == ("same",)
    assert not verification.is_base
    assert not verification.is_result
    assert str(verification).startswith("neither the base's nor the result's: same; still the base's: ")


@pytest.mark.parametrize("wrong", [slice(None), -1], ids=["all", "last"])
def test_a_model_with_other_values_is_left_alone(state, result, wrong):
    """Also if all but the last element that changes have been written."""
    delta = Delta.between(state, result)
    model = {name: tensor.clone() for name, tensor in state.items()}
    model["wide"][delta.changes["wide"].positions()[wrong]] += 1
    before = {name: tensor.clone() for name, tensor in model.items()}
    with pytest.raises(ValueError, match="the model does not hold the base of the delta: wide differ"):
        delta.apply_(model)
    assert same_bits(model, before)


def test_tensors_of_one_side_alone_and_of_other_kinds(state):
    x = torch.zeros(2)
    with pytest.raises(ValueError, match=r"^only in the result: b; in the result: c F64 \(2,\) instead of F32 \(2,\)$"):
        Delta.between({"a": x, "c": x}, {"a": x, "b": x + 1, "c": x.double()})
    with pytest.raises(ValueError, match=r"^only in the base: a$"):
        Delta.between({"a": x}, {})
    with pytest.raises(ValueError, match="only in the delta: b"):
        Delta.between({"a": x, "b": x + 1}, {"a": x, "b": x + 1}).apply_({"a": x})
    with pytest.raises(TypeError, match=r"'q' is torch\.float32, torch\.sparse_coo"):
        Delta.between({"q": x.to_sparse()}, {"q": x.to_sparse()})


def test_without_old_values(tmp_path, files, state, result):
    delta = Delta.make(*files, tmp_path / "delta", reversible=False)
    both = Delta.make(*files, tmp_path / "both")
    assert both.nbytes - delta.nbytes == sum(change.new.nbytes for change in delta.changes.values())
    delta.apply_(state)
    assert same_bits(state, result)
    with pytest.raises(ValueError, match="holds no old values: it was made with --one-way"):
        delta.revert_(state)
    with pytest.raises(ValueError, match="holds no old values"):
        delta.revert(files[1], tmp_path / "to")


def test_targets_in_the_way(tmp_path, files, state):
    delta = Delta.make(*files, tmp_path / "delta")
    base = sharded(tmp_path / "shards", state)
    with pytest.raises(ValueError, match=r"shards: is a folder, and .*base.safetensors a file; name a file"):
        delta.apply(files[0], base)
    with pytest.raises(ValueError, match="shards: already there; name a new folder"):
        delta.apply(base, base)
    with pytest.raises(TypeError, match="a model in memory takes apply_"):
        delta.apply(state, tmp_path / "to")


@pytest.mark.parametrize("which", [0, 1])
def test_a_delta_does_not_replace_a_model_that_it_is_made_of(tmp_path, files, state, which):
    before = files[which].read_bytes()
    (tmp_path / "link").symlink_to(files[which])
    for to in (files[which], str(files[which]), tmp_path / "link"):
        with pytest.raises(ValueError, match="which the delta is made of; name another file"):
            Delta.make(*files, to)
    shards = sharded(tmp_path / "shards", state)
    for shard in shards.glob("*.safetensors"):
        with pytest.raises(ValueError, match=r"holds weights of .*shards, which the delta is made of"):
            Delta.make(shards, files[1], shard)
    assert files[which].read_bytes() == before


def damage(path, mend):
    header, start = aimfair.selective.storage.read_header(path)
    data = path.read_bytes()[start:]
    metadata = json.loads(header["__metadata__"]["aimfair"])
    mend(header, metadata)
    header["__metadata__"]["aimfair"] = json.dumps(metadata)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize(
    ("mend", "said"),
    [
        (lambda h, m: m.update(kind="other"), "expected aimfair.delta, version 1, found other"),
        (lambda h, m: m["tensors"].pop("x"), "unexpected contents: x.values, x.indices"),
        (lambda h, m: m["tensors"].update(x=["F64", [3000], "", ""]), r"'x': values .* for a tensor F64 \(3000,\)"),
        (lambda h, m: m["tensors"].update(x=["F32", [9], "", ""]), r"'x': values .* for a tensor F32 \(9,\)"),
        (lambda h, m: h["x.values"].update(shape=[1]), "the data of 'x.values' are not where they should be"),
        (lambda h, m: m.pop("tensors"), "tensors"),
    ],
)
def test_damaged_files_are_named(tmp_path, mend, said):
    x = torch.zeros(3000)
    Delta.make({"x": x}, {"x": x.index_fill(0, torch.tensor([5, 9]), 1)}, tmp_path / "d", reversible=False)
    damage(tmp_path / "d", mend)
    with pytest.raises(ValueError, match=rf"/d: not a usable aimfair.delta file: .*{said}"):
        Delta.load(tmp_path / "d")


def test_damaged_data_are_found(tmp_path):
    x = torch.zeros(3000)
    save_file({"x": x}, tmp_path / "base")
    delta = Delta.make({"x": x}, {"x": x.index_fill(0, torch.tensor([5, 9]), 1)}, tmp_path / "d")
    content = bytearray((tmp_path / "d").read_bytes())
    content[-4] ^= 1  # of the first index: indices, two bytes wide, come after the values
    (tmp_path / "d").write_bytes(content)
    with pytest.raises(ValueError, match="the delta is damaged: its digests of x are others"):
        Delta.load(tmp_path / "d").apply(tmp_path / "base", tmp_path / "to")
    content[-3] ^= 0x80
    (tmp_path / "d").write_bytes(content)
    with pytest.raises(ValueError, match="'x': 2 positions for 2 values, or out of order"):
        Delta.load(tmp_path / "d").apply_({"x": x})
    assert not (tmp_path / "to").exists()
    assert delta.nnz == 2


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda f: (f / "model.safetensors.index.json").unlink(), "neither model.safetensors nor model.safetens"),
        (lambda f: (f / "model.safetensors.index.json").write_text("[]"), "index.json: not an index of shards"),
        (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}'), "'../x' is not"),
        (lambda f: save_file({"a": torch.zeros(1)}, f / "model-0.safetensors"), "disagrees with the shards on a, "),
        (lambda f: save_file({"same": torch.zeros(1)}, f / "model-0.safetensors"), "same also in another shard"),
        (lambda f: (f / "model-0.safetensors").write_bytes(b"no"), "model-0.safetensors: not a usable safetensors"),
        (lambda f: (f / "model-0.safetensors").unlink(), "No such file"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, state, write, said):
    base = sharded(tmp_path / "shards", state)
    write(base)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        Delta.between(base, state)


# -- merging -------------------------------------------------------------------------------------------


def test_merged_deltas_have_the_changes_of_all(tmp_path, state, files):
    one, other = state | {"wide": state["wide"].clone()}, changed(state, 0.01) | {"wide": state["wide"].clone()}
    one["wide"][::7] = 1
    other["wide"][1::7] = 2
    merged = Delta.merge([Delta.between(state, one), Delta.between(state, other)], files[0])
    expected = other | {"wide": torch.where(one["wide"] == 1, one["wide"], other["wide"])}
    merged.apply(files[0], tmp_path / "to")
    assert same_bits(load_file(tmp_path / "to"), expected)
    merged.revert_(expected)
    assert same_bits(expected, state)


def test_conflicts_need_a_rule():
    base = {"x": torch.zeros(6), "y": torch.zeros(2)}
    one = Delta.between(base, base | {"x": torch.tensor([1.0, 1, 1, 0, 0, 0])})
    two = Delta.between(base, base | {"x": torch.tensor([0.0, 2, 1, 2, 0, 0])})
    three = Delta.between(base, base | {"x": torch.tensor([0.0, 3, 0, 0, 3, 0])})
    with pytest.raises(ValueError, match=r"the deltas disagree on x \(1 elements\); choose the first or the last"):
        Delta.merge([one, two], base)
    for rule, expected in [("first", [1.0, 1, 1, 2, 3, 0]), ("last", [1.0, 3, 1, 2, 3, 0])]:
        model = {name: tensor.clone() for name, tensor in base.items()}
        Delta.merge([one, two, three], base, on_conflict=rule).apply_(model)
        assert model["x"].tolist() == expected


def test_deltas_that_cannot_be_merged(state, result):
    delta, back = Delta.between(state, result), Delta.between(result, state)
    with pytest.raises(ValueError, match="delta 2 is on base "):
        Delta.merge([delta, back], state)
    with pytest.raises(ValueError, match=r"the model: not the base of the deltas: torch.* differ"):
        Delta.merge([delta], result)
    with pytest.raises(ValueError, match="on_conflict='sum'"):
        Delta.merge([delta], state, on_conflict="sum")
    with pytest.raises(ValueError, match="no deltas"):
        Delta.merge([], state)


def test_kind_and_version_are_those_of_the_documentation():
    assert (delta_file.KIND, delta_file.VERSION) == ("aimfair.delta", 1)
