"""Checks the kernels against the reference on this machine."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from aimfair.selective import layout, ops, reference
from aimfair.selective.score import Score

Steps = tuple[Callable[..., None], Callable[..., ops.StepPlan], Callable[..., None]]
"""An optimizer's operator: on lists; making a plan; on a plan."""

ADAMW = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
SGD = {"momentum": 0.9}


def wrong_kernels(device: torch.device) -> list[str]:
    """Names of the kernels whose results on a small problem differ from the reference in any bit."""
    expected = _exercise(reference, torch.device("cpu"))
    return [name for name, value in _exercise(ops, device).items() if value != expected[name]]


def _exercise(operators: ModuleType, device: torch.device) -> dict[str, list[list[float]]]:
    """Kernel -> every value it writes on a small problem: statistics, a mask, steps of both optimizers."""
    generator = torch.Generator().manual_seed(0)
    sizes = (1500, 77)

    def draw() -> list[torch.Tensor]:
        return [torch.randn(size, generator=generator).to(device) for size in sizes]

    def zeros() -> list[torch.Tensor]:
        return [torch.zeros(size, device=device) for size in sizes]

    grads, others, sums, squares = draw(), draw(), zeros(), zeros()
    bits, rank = layout.empty_mask(sizes, device)
    norms, nonfinite = (torch.zeros(2, dtype=dtype, device=device) for dtype in (torch.float64, torch.int64))
    operators.accumulate_(grads, sums, squares, norms, nonfinite, weight=0.5)
    operators.select_(bits, rank, 500, Score("relative_difference", sums, others))
    written = {"accumulate": sums + squares, "select": [bits, rank]}

    mask: dict[str, Any] = {"bits": bits, "rank": rank, "first_blocks": layout.first_blocks(sizes)[:-1]}
    settings = {"lr": torch.tensor(0.01, device=device), "weight_decay": 0.1}
    optimizers: dict[str, tuple[int, Steps, dict[str, float]]] = {
        "AdamW": (2, (operators.masked_adamw_, ops.plan_adamw, ops.planned_adamw_), ADAMW),
        "SGD": (1, (operators.masked_sgd_, ops.plan_sgd, ops.planned_sgd_), SGD),
    }
    for name, (states, (masked, plan, planned), options) in optimizers.items():
        for dtype in (torch.float32, torch.bfloat16):
            params, dtype_grads = ([tensor.to(dtype) for tensor in draw()] for _ in range(2))
            lists = [params, dtype_grads, *(zeros() for _ in range(states)), list(torch.zeros(2, 1, device=device))]
            masked(*lists, **mask, **options, **settings)
            if operators is ops:  # the second step on a plan, as the optimizers take it
                planned(plan(*lists, **mask), **options, **settings)
            else:
                masked(*lists, **mask, **options, **settings)
            written[f"{name}, {str(dtype).removeprefix('torch.')}"] = [tensor for entry in lists for tensor in entry]
    return {name: [tensor.tolist() for tensor in tensors] for name, tensors in written.items()}
