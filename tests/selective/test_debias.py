"""The whole method as one function of a model and three loaders."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import aimfair
from tests.selective.models import weights

NOTEBOOK = Path(__file__).parents[2] / "examples" / "debias.ipynb"
FEATURES, CLASSES, SIZE = 6, 3, 8


def data(count: int, seed: int, size: int = SIZE) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(count, FEATURES, generator=generator), torch.randint(CLASSES, (count,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=size)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES))


def loaders(balanced: int = 27) -> list[DataLoader[Any]]:
    return [data(40, 1), data(24, 2), data(balanced, 3)]


def test_it_is_sensitivity_mask_and_masked_steps() -> None:
    found, expected = model(), model()
    done = aimfair.debias(found, *loaders(), lr=0.01, epochs=2)

    probe = aimfair.Sensitivity(expected)
    expected.eval()
    for source, loader in zip(("real_biased", "synthetic_biased", "synthetic_fair"), loaders(), strict=True):
        for x, y in list(loader)[:3]:  # as many whole batches as all three have
            nn.functional.cross_entropy(expected(x), y).backward()
            probe.update(source)
    mask = probe.select("ratio", criterion="relative_difference", density=0.3)
    optimizer = aimfair.MaskedAdamW(expected.named_parameters(), mask, lr=0.01)
    expected.train()
    for _ in range(2):
        for x, y in loaders()[2]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(expected(x), y).backward()
            optimizer.step()

    assert done.mask == mask
    assert done.sensitivity.batches == probe.batches
    for one, other in zip(found.state_dict().values(), expected.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert done.report.intact
    assert len(done.losses) == 2
    assert done.losses[1] < done.losses[0]
    assert found.training
    assert all(parameter.grad is None for parameter in found.parameters())


def test_it_takes_other_batches_losses_optimizers_and_selections() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model()

        def forward(self, pixels: Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=self.inner(pixels))

    def dicts(loader: DataLoader[Any]) -> list[dict[str, Tensor]]:
        return [{"pixels": x, "labels": y} for x, y in loader]

    plain, wrapped = model().eval(), Wrapped().eval()
    epochs: list[int] = []
    options: dict[str, Any] = {
        "select": {"rule": "top_k", "k": 50}, "batches": 2, "epochs": 3, "optimizer": aimfair.MaskedSGD, "lr": 0.1
    }  # fmt: skip
    done = aimfair.debias(plain, *loaders(), **options)
    same = aimfair.debias(wrapped, *map(dicts, loaders()), on_epoch=lambda epoch, _: epochs.append(epoch), **options)
    assert done.mask.nnz == 50
    assert done.sensitivity.batches["real_biased"] == 2
    assert same.losses == done.losses
    assert epochs == [1, 2, 3]
    assert not wrapped.training

    done = aimfair.debias(plain, *loaders(), loss=lambda m, batch: m(batch[0]).square().mean(), lr=0.01)
    assert done.losses[-1] < done.losses[0]


def test_what_cannot_be_measured_is_refused_and_nothing_changes() -> None:
    one = model()
    before = weights(one)
    with pytest.raises(ValueError, match=r"^batches of different sizes, .*'synthetic_biased': 4"):
        aimfair.debias(one, data(40, 1), data(40, 2, size=4), data(40, 3))
    with pytest.raises(ValueError, match=r"^synthetic_fair: the loader has no batch"):
        aimfair.debias(one, data(40, 1), data(40, 2), [])

    with pytest.raises(ValueError, match=r"^batches=0: expected at least 1"):
        aimfair.debias(one, *loaders(), batches=0)

    with pytest.raises(TypeError, match=r"^synthetic_fair: found an iterator, which ends"):
        aimfair.debias(one, *loaders()[:2], iter(loaders()[2]))

    of_nan = [(x * float("nan"), y) for x, y in data(24, 2)]
    with pytest.raises(FloatingPointError, match=r"source 'synthetic_biased': 0.weight"):
        aimfair.debias(one, data(40, 1), of_nan, data(40, 3))
    assert all(torch.equal(before[name], parameter) for name, parameter in one.named_parameters())
    with pytest.raises(FloatingPointError, match=r"the loss became .*: choose a lower lr"):
        aimfair.debias(one, *loaders(), optimizer=aimfair.MaskedSGD, lr=1e30)


def test_the_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)
    lines = [line for cell in cells for line in cell["source"] if line.strip()]
    assert len(lines) < 31
    names: dict[str, Any] = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
    groups = list(names["groups"].values())
    worst = {kind: min(float(names[kind][member].float().mean()) for member in groups) for kind in ("before", "after")}
    assert worst["before"] < 0.7
    assert worst["after"] > worst["before"] + 0.1
    assert "no unselected element changed" in capsys.readouterr().out
