"""Moments of fewer bits in training: loss curves beside those of float32, memory, and state of every precision."""

import pytest
import torch
from torch import Tensor, nn

import aimfair

from .models import random_gradients, set_gradients, toy, weights

# -- loss curves ------------------------------------------------------------------------------------------------------


class LanguageModel(nn.Module):
    """A causal transformer over 32 characters."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(32, 48), nn.Parameter(torch.randn(24, 48) * 0.1)
        layer = nn.TransformerEncoderLayer(48, 4, 96, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(48, 32)
        self.next = torch.randperm(32)

    def loss(self) -> Tensor:
        """Of sequences in which a character follows from the one before; one in eight is replaced by a random one."""
        text = torch.randint(32, (16, 25))
        for place in range(1, 25):
            text[:, place] = torch.where(torch.rand(16) < 0.125, text[:, place], self.next[text[:, place - 1]])
        mask = nn.Transformer.generate_square_subsequent_mask(24)
        hidden = self.encoder(self.embedding(text[:, :-1]) + self.position, mask=mask, is_causal=True)
        return nn.functional.cross_entropy(self.head(hidden).flatten(0, 1), text[:, 1:].flatten())


class VisionTransformer(nn.Module):
    """Over 16 patches of 4 x 4; ten classes of noisy patterns."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.position = nn.Conv2d(3, 48, 4, stride=4), nn.Parameter(torch.randn(16, 48) * 0.1)
        layer = nn.TransformerEncoderLayer(48, 4, 96, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(48, 10)
        self.patterns = torch.randn(10, 3, 16, 16)

    def loss(self) -> Tensor:
        labels = torch.randint(10, (32,))
        images = self.patterns[labels] + 2.5 * torch.randn(32, 3, 16, 16)
        tokens = self.patches(images).flatten(2).mT + self.position
        return nn.functional.cross_entropy(self.head(self.encoder(tokens).mean(1)), labels)


def curve(kind: type[LanguageModel | VisionTransformer], bits: int, steps: int, seed: int) -> Tensor:
    """Losses of training 30% of the weights; the same model, mask and data for all bits."""
    torch.manual_seed(seed)
    model = kind()
    mask = aimfair.ParameterMask.from_bool({n: torch.rand_like(p) < 0.3 for n, p in model.named_parameters()})
    optimizer = aimfair.MaskedAdamW(
        model.named_parameters(), mask, lr=5e-3, state="compact", moment_bits=bits, seed=seed
    )
    losses = []
    for _ in range(steps):
        loss = model.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.parametrize(("kind", "steps"), [(LanguageModel, 100), (VisionTransformer, 100)])
def test_loss_curves_are_those_of_32_bits(kind, steps):
    """At every stage of the training, within the spread that a change of rounding alone makes."""
    torch.set_num_threads(1)
    stages = 5
    curves = {bits: curve(kind, bits, steps, seed=1).view(stages, -1).mean(1) for bits in (32, 16, 8)}
    assert curves[32][-1] < 0.6 * curves[32][0], "nothing was learned"
    for bits in (16, 8):
        torch.testing.assert_close(curves[bits], curves[32], rtol=0.01, atol=0.005)


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "bits", "expected"), [
    ("dense", 32, 8.0), ("dense", 16, 4.0), ("dense", 8, 2.004),
    ("compact", 32, 0.8), ("compact", 16, 0.4), ("compact", 8, 0.204),
])  # fmt: skip
def test_bytes_per_parameter(state, bits, expected):
    """Both moments of AdamW, a tenth of a large tensor selected."""
    parameter = nn.Parameter(torch.zeros(1 << 20))
    selected = torch.zeros(1 << 20, dtype=torch.bool)
    selected[::10] = True
    mask = aimfair.ParameterMask.from_bool({"weight": selected})
    optimizer = aimfair.MaskedAdamW([("weight", parameter)], mask, state=state, moment_bits=bits)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    entry = optimizer.state[parameter]
    held = sum(entry[name].nbytes for name in ("exp_avg", "exp_avg_sq"))
    assert held / parameter.numel() == pytest.approx(expected, rel=1e-3)


# -- state of every precision -----------------------------------------------------------------------------------------


def stepped(bits: int, state: str = "dense", **options) -> tuple[nn.Module, aimfair.MaskedAdamW]:
    torch.manual_seed(0)
    model = toy()
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), state=state, moment_bits=bits, **options)
    for _ in range(3):
        set_gradients(model, random_gradients(model))
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("saved", [32, 16, 8])
@pytest.mark.parametrize("loaded", [32, 16, 8])
def test_state_of_any_precision_is_taken(saved, loaded):
    """To the precision of the coarser one: after a step without a gradient, the weights agree."""
    model, optimizer = stepped(saved)
    other, same = stepped(loaded), {}
    other[0].load_state_dict(model.state_dict())
    other[1].load_state_dict(optimizer.state_dict())
    for each, stepper in ((model, optimizer), other):
        set_gradients(each, {name: torch.zeros_like(p) for name, p in each.named_parameters()})
        before = weights(each)
        stepper.step()
        same[stepper.moment_bits, id(stepper)] = {n: w - before[n] for n, w in weights(each).items()}
    first, second = same.values()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0.2, atol=3e-6)


def test_8_bits_survive_a_round_trip_to_torch_and_back():
    """Decoded and encoded again, every code is the same."""
    _, optimizer = stepped(8)
    _, whole = stepped(32)
    whole.load_state_dict(optimizer.state_dict())
    _, again = stepped(8)
    again.load_state_dict(whole.state_dict())
    for before, after in zip(optimizer.state.values(), again.state.values(), strict=True):
        assert torch.equal(before["exp_avg_sq"], after["exp_avg_sq"])
        assert torch.equal(before["exp_avg"], after["exp_avg"])


def test_8_bit_state_of_another_size_is_refused_by_name():
    _, optimizer = stepped(8)
    state = optimizer.state_dict()
    state["state"][0]["exp_avg"] = state["state"][0]["exp_avg"][:-1]
    with pytest.raises(ValueError, match=r"8-bit state of '\w+' has 2 bytes, expected 3 \(dense\)"):
        stepped(8)[1].load_state_dict(state)


@pytest.mark.parametrize(("options", "message"), [
    ({"moment_bits": 4}, "moment_bits=4: expected 32, 16 or 8"),
    *(({"moment_bits": bits}, "moment_bits=.*: expected 32, 16 or 8") for bits in (True, 8.0, torch.tensor(8))),
    ({"moment_bits": 8, "amsgrad": True}, "amsgrad is not valid with moment_bits=8"),
])  # fmt: skip
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        aimfair.MaskedAdamW(toy().named_parameters(), **options)


def test_amsgrad_is_not_loaded_into_8_bits():
    model, optimizer = stepped(8)
    before = {name: value.clone() for name, value in optimizer.state[model.scale].items()}
    plain = torch.optim.AdamW(model.parameters(), amsgrad=True)
    plain.step()
    with pytest.raises(ValueError, match="amsgrad is not valid with moment_bits=8"):
        optimizer.load_state_dict(plain.state_dict())
    assert not optimizer.param_groups[0]["amsgrad"]
    assert all(torch.equal(value, before[name]) for name, value in optimizer.state[model.scale].items())


def test_of_the_whole_optimizer_only():
    groups = [{"params": list(toy().parameters()), "moment_bits": 8}]
    with pytest.raises(ValueError, match="moment_bits is an option of the whole optimizer"):
        aimfair.MaskedAdamW(groups)
