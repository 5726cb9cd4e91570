"""Whether the kernels do what the specification does, on the machine at hand."""

from types import ModuleType

import torch

from aimfair import layout, ops, reference


def wrong_kernels(device: torch.device) -> list[str]:
    """The kernels that do not do, to the bit, what the specification does, on a small problem."""
    expected = _exercise(reference, torch.device("cpu"))
    return [name for name, value in _exercise(ops, device).items() if value != expected[name]]


def _exercise(operators: ModuleType, device: torch.device) -> dict[str, list[list[float]]]:
    """Kernel -> every value that it writes, for three steps of a small problem."""
    generator = torch.Generator().manual_seed(0)
    sizes = (1500, 77)

    def draw() -> list[torch.Tensor]:
        return [torch.randn(size, generator=generator).to(device) for size in sizes]

    def zeros() -> list[torch.Tensor]:
        return [torch.zeros(size, device=device) for size in sizes]

    params, grads, others = draw(), draw(), draw()
    sums, squares, exp_avgs, exp_avg_sqs = zeros(), zeros(), zeros(), zeros()
    bits, rank = layout.empty_mask(sizes, device)
    norms, nonfinite = (torch.zeros(2, dtype=dtype, device=device) for dtype in (torch.float64, torch.int64))
    operators.accumulate_(grads, sums, squares, norms, nonfinite, weight=0.5)
    operators.select_(bits, rank, 500, "relative_difference", sums, others)
    operators.masked_adamw_(
        params, grads, exp_avgs, exp_avg_sqs, list(torch.zeros(2, 1, device=device)),
        lr=torch.tensor(0.01, device=device), beta1=0.9,
        beta2=0.999, eps=1e-8, weight_decay=0.1, bits=bits, rank=rank, first_blocks=layout.first_blocks(sizes)[:-1],
    )  # fmt: skip
    written = {"accumulate": sums + squares, "select": [bits, rank], "masked step": params + exp_avgs + exp_avg_sqs}
    return {name: [tensor.tolist() for tensor in tensors] for name, tensors in written.items()}
