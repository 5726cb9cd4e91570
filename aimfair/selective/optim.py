"""AdamW and SGD that update only selected elements; the others keep every bit."""

from typing import Any

from torch import Tensor

from aimfair.selective import ops
from aimfair.selective.launch import Operator
from aimfair.selective.mask import ParameterMask
from aimfair.selective.masked_optimizer import MaskedOptimizer, Params, State
from aimfair.selective.moments import MomentBits


class MaskedAdamW(MaskedOptimizer):
    """AdamW (decoupled weight decay, arXiv 1711.05101) on the selected elements; the others keep every bit.

    A :class:`torch.optim.Optimizer` that takes the mask second and then what ``torch.optim.AdamW`` takes, steps all
    tensors of a group in one operator call, and works with schedulers, closures, clipping, ``torch.amp.GradScaler``
    and ``state_dict``.

    Args:
        params: ``model.named_parameters()``, matched to the mask by name; or ``model.parameters()``, matched by order
            and shape; or param groups of either. A group may bring its own ``"mask"`` (None: every element). Contiguous
            float32, bfloat16 or float16; dtypes may be mixed.
        mask: None tunes every element.
        lr: a number, or a float32 or float64 tensor with one element, which may live on the device (CUDA graphs).
        betas, eps, weight_decay, amsgrad, maximize: as in ``torch.optim.AdamW``, but numbers only, no tensors.
        foreach, fused, capturable: choose an implementation in torch and change nothing here: a step is always one
            fused call, and can be captured in a CUDA graph.
        differentiable: only False; no gradient flows through a step.
        state: ``dense`` keeps exp_avg and exp_avg_sq of all elements, ``compact`` of the selected ones. Both step to
            the same bits, and load each other's state.
        moment_bits: 32, 16 (bfloat16) or 8 per element of exp_avg and of exp_avg_sq; 8 bits take 4 bytes more per block
            of 1024 elements. Fewer bits are rounded at random, reproducibly from (``seed``, step, element):
            :mod:`aimfair.selective.moments`. State of any precision can be loaded. Not 8 with ``amsgrad``, whose
            maximum would not be kept by rounding.
        master_weights: keep selected bfloat16 and float16 weights in float32 too, and round the parameter from those.
        stochastic_rounding: round bfloat16 weights up or down at random, in proportion to the distance, reproducibly
            from (``seed``, step, element).
        offload: keep compact state of parameters on a GPU in pinned host memory; steps copy it there and back.

    State is allocated at the first step, and only for parameters with a selected element.

    Raises:
        TypeError, ValueError: naming the argument, or the parameters that do not match the mask.
    """

    moments = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    required = ("exp_avg", "exp_avg_sq")
    operator = Operator(ops.masked_adamw_, ops.plan_adamw, ops.planned_adamw_)

    def __init__(
        self,
        params: Params,
        mask: ParameterMask | None = None,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        amsgrad: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        state: State = "dense",
        moment_bits: MomentBits = 32,
        master_weights: bool = False,
        stochastic_rounding: bool = False,
        offload: bool = False,
        seed: int = 0,
    ):
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad,
            "maximize": maximize, "stochastic_rounding": stochastic_rounding, "seed": seed,
        }  # fmt: skip
        super().__init__(
            params, mask, defaults, state=state, moment_bits=moment_bits, master_weights=master_weights,
            offload=offload, foreach=foreach, fused=fused, capturable=capturable, differentiable=differentiable,
        )  # fmt: skip

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return self.moments if group["amsgrad"] else self.required

    def _settings(self, group: dict[str, Any]) -> dict[str, Any]:
        return {"beta1": group["betas"][0], "beta2": group["betas"][1], "eps": group["eps"]}


class MaskedSGD(MaskedOptimizer):
    """SGD with momentum, coupled weight decay and Nesterov, as ``torch.optim.SGD``, on the selected elements.

    The others keep every bit. The mask comes second, the other arguments are as in ``torch.optim.SGD`` and
    :class:`MaskedAdamW`. State is a momentum buffer if there is momentum.
    """

    moments = ("momentum_buffer",)
    operator = Operator(ops.masked_sgd_, ops.plan_sgd, ops.planned_sgd_)

    def __init__(
        self,
        params: Params,
        mask: ParameterMask | None = None,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        *,
        nesterov: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        state: State = "dense",
        moment_bits: MomentBits = 32,
        master_weights: bool = False,
        stochastic_rounding: bool = False,
        offload: bool = False,
        seed: int = 0,
    ):
        defaults = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay, "nesterov": nesterov,
            "maximize": maximize, "stochastic_rounding": stochastic_rounding, "seed": seed,
        }  # fmt: skip
        super().__init__(
            params, mask, defaults, state=state, moment_bits=moment_bits, master_weights=master_weights,
            offload=offload, foreach=foreach, fused=fused, capturable=capturable, differentiable=differentiable,
        )  # fmt: skip

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return self.moments if group["momentum"] else ()

    def _settings(self, group: dict[str, Any]) -> dict[str, Any]:
        return {name: group[name] for name in ("momentum", "dampening", "nesterov")}
