"""Steps inside the backward passes of two processes: the bits of steps after them."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import aimfair
from aimfair.selective import step_in_backward

from . import processes
from .models import same_bits

pytestmark = [
    pytest.mark.skipif("config.getoption('--device') != 'cpu'", reason="Gloo processes on the CPU"),
    pytest.mark.slow,
]

OPTIMIZERS: list[tuple[type, dict[str, Any]]] = [
    (aimfair.MaskedAdamW, {"lr": 1e-2, "state": "compact"}),
    (aimfair.MaskedAdamW, {"lr": 1e-2, "state": "dense", "moment_bits": 8}),
]


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(11, 41), nn.ReLU(), nn.Linear(41, 33), nn.ReLU(), nn.Linear(33, 3))


def mask(seed: int = 3) -> aimfair.ParameterMask:
    """Nothing of one tensor, and nothing in one process of another."""
    bools = aimfair.ParameterMask.random(net(), 0.3, seed=seed).to_bool()
    bools["2.bias"][:] = False
    bools["2.weight"][17:] = False
    return aimfair.ParameterMask.from_bool(bools)


def local(tensor: Any) -> Tensor:
    return tensor.detach().to_local() if hasattr(tensor, "to_local") else tensor.detach()


def check(models: tuple[nn.Module, nn.Module], rank: int, max_norm: float | None, **release: Any) -> None:
    """Two batches of one pass and two of three, on a model whose passes step and on one that is stepped afterwards."""
    for kind, options in OPTIMIZERS:
        optimizers = [kind(model.named_parameters(), mask(), **options) for model in models]
        with optimizers[0].step_in_backward(max_norm=max_norm, **release) as steps:
            for number in range(4):
                if number == 2:
                    for optimizer in optimizers:
                        optimizer.update_mask(mask(5))
                torch.manual_seed(10 * number + rank)
                parts = [torch.randn(4, 11) for _ in range(3 if number % 2 else 1)]
                for model in models:
                    for part in parts[:-1]:
                        with no_step(model, steps if model is models[0] and not release else None):
                            model(part).square().mean().backward()
                    model(parts[-1]).square().mean().backward()
                assert all(parameter.grad is None for parameter in models[0].parameters())
                if max_norm is not None:
                    nn.utils.clip_grad_norm_(models[1].parameters(), max_norm)
                optimizers[1].step()
                optimizers[1].zero_grad()
                for (name, found), expected in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
                    assert same_bits(local(found), local(expected)), (kind, options, max_norm, number, name)


def no_step(model: nn.Module, steps: Any) -> AbstractContextManager[None]:
    if isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return nullcontext() if steps is None else steps.accumulate()


def check_parameters_of_one_process(rank: int) -> None:
    """A part that only one process uses in a pass is averaged, and stepped, in both."""
    models = [nn.ModuleList([net(), nn.Linear(11, 3)]) for _ in "12"]

    class Branches(nn.Module):
        def __init__(self, parts: nn.ModuleList):
            super().__init__()
            self.parts = parts

        def forward(self, x: Tensor, both: bool) -> Tensor:
            return self.parts[0](x) + (self.parts[1](x) if both else 0)

    ddps = [
        DistributedDataParallel(Branches(m), gradient_as_bucket_view=True, find_unused_parameters=True) for m in models
    ]
    optimizers = [aimfair.MaskedAdamW(model.named_parameters(), lr=1e-2) for model in models]
    with optimizers[0].step_in_backward(ddp=ddps[0]):
        for number in range(3):
            x = torch.randn(4, 11)
            for ddp in ddps:
                ddp(x, number == 2 or rank == number).square().mean().backward()
            assert all(parameter.grad is None for parameter in models[0].parameters())
            optimizers[1].step()
            optimizers[1].zero_grad()
            for (name, found), expected in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
                assert same_bits(found.detach(), expected.detach()), (number, name)


def body(rank: int, _: Path) -> None:
    from torch.distributed.fsdp import fully_shard

    for together, max_norm in ((1, None), (500, None), (2**20, 1e-3)):
        step_in_backward.TOGETHER = together
        averaged = tuple(DistributedDataParallel(net(), bucket_cap_mb=1e-3, gradient_as_bucket_view=True) for _ in "12")
        check(averaged, rank, max_norm, ddp=averaged[0])
        sharded = net(), net()
        for model in sharded:
            for layer in (model[0], model[2], model):
                fully_shard(layer)
        check(sharded, rank, max_norm)
    check_parameters_of_one_process(rank)


def test_two_processes(tmp_path):
    processes.run(body, tmp_path)
