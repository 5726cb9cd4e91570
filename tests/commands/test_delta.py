"""aimfair delta: what it prints, refuses and writes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from aimfair.commands import cli
from aimfair.training.models import build_model, load_model, save_model
from aimfair.training.settings import ModelSettings


@pytest.fixture(autouse=True)
def models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("GOMP_SPINCOUNT", "0")
    base = {"x": torch.zeros(1000), "y": torch.zeros(10), "z": torch.zeros(3)}
    save_file(base, "base")
    save_file(base | {"x": base["x"].index_fill(0, torch.tensor([3, 5]), 1.0)}, "one")
    save_file(base | {"x": base["x"].index_fill(0, torch.tensor([5, 7]), 2.0), "y": base["y"] + 1}, "two")


def delta(*words):
    return cli.main(["delta", *words])


def test_there_and_back(capsys):
    assert delta("make", "base", "one", "--to", "d") == 0
    assert capsys.readouterr().out.startswith("d: 2 of 1,013 elements (0.20%) in 1 tensors, 0.0 MB")
    assert delta("apply", "d", "base", "--to", "applied") == 0
    assert delta("verify", "d", "applied") == 0
    *_, changed, said = capsys.readouterr().out.splitlines()
    assert changed == "x: 2 of 1,000 elements changed"
    assert said == "applied is the result: 1 tensors changed, all others are the base's"
    assert delta("revert", "d", "applied", "--to", "back") == 0
    assert all(torch.equal(load_file("back")[name], value) for name, value in load_file("base").items())


def test_a_model_is_written_in_its_own_place_and_a_delta_into_a_new_folder():
    assert delta("make", "base", "one", "--to", "new/folder/d") == 0
    assert delta("apply", "new/folder/d", "base", "--to", "base") == 0
    assert Path("base").read_bytes() == Path("one").read_bytes()


def test_the_weights_of_a_folder_that_is_read_are_not_replaced(capsys):
    Path("folder").mkdir()
    weights = Path("base").rename("folder/model.safetensors")
    before = weights.read_bytes()
    assert delta("make", "folder", "one", "--to", "folder/model.safetensors") == 2
    assert "aimfair delta make reads it" in capsys.readouterr().err
    assert weights.read_bytes() == before
    assert delta("make", "folder", "one", "--to", "folder/d") == 0


def test_verify_names_what_differs(capsys):
    assert delta("make", "base", "one", "--to", "d", "--one-way") == 0
    assert delta("verify", "d", "base") == 1
    assert delta("verify", "d", "two") == 1
    assert delta("revert", "d", "one", "--to", "back") == 1
    first, second, third = capsys.readouterr().err.splitlines()
    assert first == "error: base is not the result: the base: the delta is not applied"
    assert second == "error: two is not the result: neither the base's nor the result's: x, y"
    assert third == "error: the delta holds no old values: it was made with --one-way, or reversible=False"


def test_merge(capsys):
    for name in ("one", "two"):
        assert delta("make", "base", name, "--to", f"to-{name}") == 0
    merge = ("merge", "to-one", "to-two", "--base", "base", "--to", "both")
    assert delta(*merge) == 1
    assert capsys.readouterr().err == "error: the deltas disagree on x (1 elements); choose the first or the last\n"
    assert delta(*merge, "--on-conflict", "last") == 0
    assert delta("apply", "both", "base", "--to", "merged") == 0
    merged = load_file("merged")
    assert merged["x"][[3, 5, 7]].tolist() == [1, 2, 2]
    assert merged["y"].tolist() == [1] * 10


TINY_VIT = {
    "model_type": "vit", "image_size": 16, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 64,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of PEFT
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_shira_adapters(capsys):
    """Of an exported model, to PEFT and back."""
    peft = pytest.importorskip("peft")
    save_model(build_model(ModelSettings(config=TINY_VIT), 2, seed=0), Path("biased"))
    biased = load_file("biased/model.safetensors")
    tuned = {name: tensor.clone() for name, tensor in biased.items()}
    names = [name for name in biased if ".layer" in name and biased[name].shape == (64, 32)]  # of the MLPs
    for name in names:
        tuned[name].view(-1)[::7] += 2.0**-9
    tuned["classifier.bias"] += 1
    save_file(tuned, "tuned")
    assert delta("make", "biased", "tuned", "--to", "d") == 0
    assert delta("to-shira", "d", "biased", "--to", "adapter") == 0
    *_, made, said = capsys.readouterr().out.splitlines()
    assert said == "adapter: r = 4, 2 linear layers, 1 modules whole"
    model = peft.PeftModel.from_pretrained(load_model(Path("biased")), "adapter").merge_and_unload()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in tuned.items())
    assert delta("from-shira", "adapter", "biased/model.safetensors", "--to", "back", "--one-way") == 0
    assert capsys.readouterr().out.replace("back", "d").partition(", 0.0 MB")[0] == made.partition(", 0.0 MB")[0]
    assert delta("verify", "back", "tuned") == 0
    tuned[names[0]][0, 0] = 1e-12
    save_file(tuned, "far")
    assert delta("make", "biased", "far", "--to", "e") == 0
    assert delta("to-shira", "e", "biased", "--to", "inexact") == 0
    assert "PEFT will not reach 1 of " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["make", "base", "two"], 2, "aimfair delta make: give --to"),
        (["merge", "one", "two", "--to", "x"], 2, "aimfair delta merge: give --base"),
        (
            ["merge", "one", "--to", "x", "--base", "base"],
            2,
            "aimfair delta merge: expected DELTA DELTA..., found 1 files",
        ),
        (["verify", "one"], 2, "aimfair delta verify: expected DELTA MODEL, found 1 files"),
        (["verify", "one", "base", "--to", "x"], 2, "--to: aimfair delta verify has no such flag"),
        (["apply", "one", "base", "--to", "x", "--one-way"], 2, "--one-way: aimfair delta apply has no such flag"),
        (["verify", "d", "base", "--train.lr", "1"], 2, "--train.lr: delta takes no settings"),
        (["verify", "none", "base"], 2, "none: no such file or folder"),
        (["verify", "base", "base"], 1, "base: not a usable aimfair.delta file: expected aimfair.delta, version 1"),
        (["make", "base", "none", "--to", "x"], 2, "none: no such file or folder"),
        (["to-shira", "one", "base"], 2, "aimfair delta to-shira: give --to"),
        (["from-shira", ".", "base", "--to", "x"], 1, "adapter_config.json"),
        (["make", "base", "two", "--to", "base"], 2, "--to base: aimfair delta make reads it; name another"),
        (["apply", "one", "base", "--to", "./one"], 2, "--to one: aimfair delta apply reads it; name another"),
        (["merge", "one", "two", "--base", "base", "--to", "base"], 2, "--to base: aimfair delta merge reads it"),
        (["make", "base", "two", "--to", "."], 2, "--to .: a folder; name a file"),
    ],
)
def test_wrong_command_lines(words, code, said, capsys):
    assert delta(*words) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert said in line


def test_an_adapter_needs_to_know_the_layers(capsys):
    assert delta("make", "base", "one", "--to", "d") == 0
    assert delta("to-shira", "d", "base", "--to", "x") == 2
    said = "error: base: a file; give the model's folder, whose config.json tells which layers are linear\n"
    assert capsys.readouterr().err == said
