"""Published methods on the public interface: each selects what its rule, written out in torch or numpy, selects."""

import numpy as np
import pytest
import torch
from torch import nn

import aimfair
from tests.repository.test_examples import FOLDER, example
from tests.selective.models import assert_unselected_unchanged, weights


def chosen(mask: aimfair.ParameterMask) -> dict[str, set[int]]:
    """Flat indices of the selected elements of each parameter that has any."""
    flat = {name: selected.flatten().nonzero().flatten().tolist() for name, selected in mask.to_bool().items()}
    return {name: set(indices) for name, indices in flat.items() if indices}


def topk(values: torch.Tensor, k: int, *, largest: bool = True) -> set[int]:
    return set(values.detach().flatten().topk(k, largest=largest).indices.tolist())


@pytest.mark.parametrize("path", sorted((FOLDER / "adopters").glob("*.py")), ids=lambda path: path.stem)
def test_length(path):
    assert len(path.read_text().splitlines()) < 80


@pytest.mark.parametrize("per_neuron", [1, 3])
def test_gps_selects_the_largest_gradients_of_each_neuron(per_neuron):
    gps = example("adopters/gps")
    model, batches = gps.ViT(), [gps.images(8) for _ in range(2)]
    mask = gps.gps_mask(model, batches, per_neuron).to_bool()
    for x, y in batches:
        nn.functional.cross_entropy(model(x), y).backward()
    for name, parameter in model.named_parameters():
        if "norm" in name or "pos_embed" in name or "cls_token" in name:
            expected = np.zeros(parameter.shape, bool)
        elif "bias" in name or "head" in name:
            expected = np.ones(parameter.shape, bool)
        else:
            rows = np.abs(parameter.grad.numpy()).reshape(len(parameter), -1)
            expected = np.zeros(rows.shape, bool)
            np.put_along_axis(expected, rows.argsort(axis=1)[:, -per_neuron:], True, axis=1)
            expected = expected.reshape(parameter.shape)
        np.testing.assert_array_equal(mask[name].numpy(), expected, err_msg=name)


@pytest.mark.slow  # a transformer of its own
def test_gps_learns(capsys):
    first, last = example("adopters/gps").main()
    assert last < 0.3 * first
    assert "GPS: tuning 5.6% of the weights" in capsys.readouterr().out


@pytest.mark.slow  # imports transformers
def test_sift_selects_the_largest_first_gradients_of_each_matrix():
    sift = example("adopters/sift")
    first, last = sift.main()
    assert last < 0.9 * first
    model = sift.small_model()
    tokens = sift.progressions(1)[0]
    model(tokens, labels=tokens).loss.backward()
    expected = {
        name: topk(parameter.grad.abs(), int(0.05 * parameter.numel()) + 1)
        for name, parameter in model.named_parameters()
        if any(module in name for module in sift.MODULES)
    }
    assert len(expected) == 12
    assert chosen(sift.sift_mask(model, 0.05)) == expected


def test_lift_selects_the_largest_entries_of_the_low_rank_part():
    lift = example("adopters/lift")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 96), nn.ReLU(), nn.Linear(96, 30), nn.ReLU(), nn.Linear(30, 6))
    expected = {}
    for name in ("0.weight", "2.weight", "4.weight"):
        weight = model.get_parameter(name).detach()
        u, s, v = torch.svd(weight)
        s[3:] = 0
        expected[name] = topk((u @ torch.diag(s) @ v.T).abs(), min(2 * sum(weight.shape), weight.numel()))
    assert chosen(lift.lift_mask(model, 2, 3)) == expected


def test_lift_learns_and_keeps_the_moments_of_what_stays():
    lift = example("adopters/lift")
    first, last = lift.main()
    assert last < 0.1 * first
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 6))
    old = lift.lift_mask(model, 2, 2)
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), old, lr=0.05)
    lift.tune(model, optimizer, *lift.blobs(50, seed=1), steps=20)
    weight = model.get_parameter("0.weight")
    before, moments = weights(model), optimizer.state[weight]["exp_avg"].clone()
    new = lift.lift_mask(model, 2, 2)
    optimizer.update_mask(new)
    stay, fresh = (old & new).bool_of("0.weight"), (new - old).bool_of("0.weight")
    assert stay.any()
    assert fresh.any()
    after = optimizer.state[weight]["exp_avg"]
    assert torch.equal(after[stay], moments[stay])
    assert after[fresh].count_nonzero() == 0
    lift.tune(model, optimizer, *lift.blobs(50, seed=1), steps=3)
    assert_unselected_unchanged(model, before, new.to_bool())


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # of PEFT
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Argument self.mask_type:UserWarning")  # given below
def test_shira_is_pefts(tmp_path):
    """The mask as PEFT stores it for a mask function of the paper's rule, and the adapter as PEFT applies it."""
    peft = pytest.importorskip("peft")
    shira = example("adopters/shira")
    first, last = shira.main(str(tmp_path / "adapter"))
    assert last < 0.1 * first

    def largest(layer, r, **_):
        indices = layer.weight.abs().flatten().topk(r * sum(layer.weight.shape)).indices
        return torch.zeros(layer.weight.numel()).index_fill_(0, indices, 1.0).view_as(layer.weight)

    config = peft.ShiraConfig(r=shira.RANK, mask_type="largest", target_modules=["0", "2"])
    config.mask_fn = largest
    theirs = peft.get_peft_model(shira.small_model(), config).base_model.model
    mask = shira.shira_mask(shira.small_model(), shira.RANK)
    for name in ("0", "2"):
        rows, columns = theirs.get_submodule(name).shira_indices["default"]
        expected = torch.zeros_like(mask.bool_of(f"{name}.weight"))
        expected[rows.long(), columns.long()] = True
        assert torch.equal(mask.bool_of(f"{name}.weight"), expected)

    tuned = shira.small_model()
    shira.tune(tuned, mask, *(xy := shira.blobs(100)), steps=5)
    aimfair.selective.shira.write_adapter(
        aimfair.Delta.between(shira.small_model(), tuned), shira.small_model(), tmp_path / "own"
    )
    loaded = peft.PeftModel.from_pretrained(shira.small_model(), tmp_path / "own")
    torch.testing.assert_close(loaded(xy[0]), tuned(xy[0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("top", [True, False])
def test_super_tuning_selects_what_peft_selects(top):
    peft = pytest.importorskip("peft")
    if not hasattr(peft, "SupertuningConfig"):
        pytest.skip("peft 0.21 or later is needed for Super-Tuning")
    example_of = example("adopters/super_tuning")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 6))
    mask = chosen(example_of.super_mask(model, 0.9, top=top))
    theirs = peft.get_peft_model(
        model, peft.SupertuningConfig(sparsity=0.9, select_top=top, target_modules=["0", "2"])
    ).base_model.model
    assert mask == {
        f"{name}.weight": set(theirs.get_submodule(name).supertuning_indices["default"].tolist()) for name in ("0", "2")
    }


def test_super_tuning_learns():
    first, last = example("adopters/super_tuning").main()
    assert last < 0.1 * first


def test_spiel_drops_and_grows_as_published():
    spiel = example("adopters/spiel")
    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 6)), spiel.blobs(100)
    base = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = aimfair.MaskedAdamW(
        model.named_parameters(), aimfair.ParameterMask.random(model, 0.2), lr=0.01, weight_decay=0.0, state="dense"
    )
    grown = 0
    for share in (0.8, 0.5, 0.2):
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        before, active = weights(model), chosen(optimizer.mask)
        moments = {name: optimizer.state[model.get_parameter(name)]["exp_avg"].clone() for name in active}
        expected, dropped = {}, {}
        for name in active:
            parameter = model.get_parameter(name)
            expected[name], dropped[name] = regrown(
                active[name], (parameter - base[name]).detach().flatten(), parameter.grad.flatten(), share
            )
        grown += spiel.regrow(model, optimizer, base, share)
        assert chosen(optimizer.mask) == expected
        for name in active:
            parameter = model.get_parameter(name)
            now, then, first = (values.detach().flatten() for values in (parameter, before[name], base[name]))
            away = torch.tensor(sorted(dropped[name]), dtype=torch.long)
            kept = torch.tensor(sorted(set(range(now.numel())) - dropped[name]))
            assert torch.equal(now[away], first[away])
            assert torch.equal(now[kept], then[kept])
            stay = torch.tensor(sorted(active[name] & expected[name]))
            found = optimizer.state[parameter]["exp_avg"].flatten()
            assert torch.equal(found[stay], moments[name].flatten()[stay])
    assert grown > 50


def regrown(active: set[int], change: torch.Tensor, gradient: torch.Tensor, share: float) -> tuple[set[int], set[int]]:
    """(selected, dropped) after one round of SpIEL-AG in one tensor, with indices as its authors have it."""
    order = sorted(active, key=lambda i: abs(change[i].item()))
    outgoing = order[: int(share * len(active))]
    remaining = active - set(outgoing)
    candidates = [i for i in gradient.abs().topk(len(active)).indices.tolist() if i not in remaining]
    incoming = candidates[: len(outgoing)]
    leaving = [i for i in outgoing if i not in incoming]
    coming = [i for i in incoming if i not in outgoing]
    leaving = leaving[: len(coming)]
    return (active - set(leaving)) | set(coming), set(leaving)


def test_spiel_learns():
    first, last = example("adopters/spiel").main()
    assert last < 0.1 * first
