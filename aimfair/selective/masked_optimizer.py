"""The base of the masked optimizers: param groups under masks, the step, and state_dict."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from aimfair.selective.copies import WeightCopies, require_copyable
from aimfair.selective.kept_state import KeptState, Loaded, place_of
from aimfair.selective.launch import Launch, Lists, Operator
from aimfair.selective.launches import Launches
from aimfair.selective.layout import BLOCK
from aimfair.selective.mask import ParameterMask
from aimfair.selective.moments import MomentBits
from aimfair.selective.offload import Offload, require_offloadable, split
from aimfair.selective.options import IMPLEMENTATION, require_mask, require_max_norm, require_options, require_params
from aimfair.selective.parameters import named_errors
from aimfair.selective.recorder import DeltaRecorder
from aimfair.selective.state import Slot, match
from aimfair.selective.step_in_backward import StepInBackward, Steps

if TYPE_CHECKING:
    from torch.nn.parallel import DistributedDataParallel

State = Literal["dense", "compact"]
"""Optimizer state of a parameter: of all its elements, or only of the selected ones."""

Params = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]


_PICKLED = ("mask", "compact", "moment_bits", "master_weights", "offload", "_slots", "_unmatched")
"""Attributes that a copy or pickle of an optimizer keeps, besides torch's."""


class MaskedOptimizer(Optimizer):
    """Updates selected elements only; a subclass names its state and its operator."""

    moments: ClassVar[tuple[str, ...]]
    """Names of all state tensors that a parameter can have, besides "step" and "master"."""

    required: ClassVar[tuple[str, ...]] = ()
    """Those of :attr:`moments` that loaded state must have."""

    operator: ClassVar[Operator]

    _step_supports_amp_scaling = True  # torch.amp.GradScaler hands grad_scale and found_inf to step()

    def __init__(
        self,
        params: Params,
        mask: ParameterMask | None,
        defaults: dict[str, Any],
        *,
        state: State,
        moment_bits: MomentBits,
        master_weights: bool,
        offload: bool,
        **implementation: bool | None,
    ):
        require_params(params)
        require_mask(mask)
        if state not in ("dense", "compact"):
            raise ValueError(f'state={state!r}: expected "dense" or "compact"')
        whole = {"master_weights": master_weights, "moment_bits": moment_bits, "offload": offload}
        require_options({**defaults, **whole, **implementation})
        self.mask, self.compact = mask, state == "compact"
        self.moment_bits, self.master_weights, self.offload = moment_bits, master_weights, offload
        self._slots: dict[Tensor, Slot] = {}
        self._offload = Offload() if offload else None
        self._copies: WeightCopies | None = None
        self._in_backward: StepInBackward | None = None
        self._launches = Launches(self._kept, self._slots)
        self._unmatched: list[dict[str, Any]] | None = []  # groups to be matched together once all are there
        super().__init__(params, defaults)
        if self._unmatched:
            self._adopt(self._unmatched, mask)
        self._unmatched = None

    # -- parameters ------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a param group, as in torch, under the optimizer's mask or under its own.

        A group may have its own ``"mask"``; None tunes every element. Under the optimizer's mask, a group added after
        construction needs named parameters, so that they can be matched.

        Raises:
            TypeError, ValueError: naming the option, or the parameters that do not match the mask.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"expected a param group, a dict with params, found {type(param_group).__name__}")
        group = dict(param_group)
        has_own_mask = "mask" in group
        mask = group.pop("mask") if has_own_mask else self.mask
        require_mask(mask)
        if whole := [name for name in ("state", "moment_bits", "master_weights", "offload") if name in group]:
            raise ValueError(f"{whole[0]} is an option of the whole optimizer, not of a param group")
        self._require_options(group)
        super().add_param_group(group)
        if not has_own_mask and self._unmatched is not None:
            self._unmatched.append(group)
            return
        try:
            if not has_own_mask and mask is not None and "param_names" not in group:
                raise ValueError(
                    "a group added to a masked optimizer needs named parameters,"
                    ' or a "mask" of its own (None tunes every element)'
                )
            self._adopt([group], mask)
        except Exception:
            del self.param_groups[-1]
            raise

    def update_mask(self, mask: ParameterMask) -> None:
        """Changes which elements are selected; groups with a mask of their own keep it.

        Elements that stay selected keep the bits of their moments and master weights. New elements
        start with moments of zero and the weight as it is. A parameter keeps its count of steps, by which Adam corrects
        for moments that began with zero, so the first steps of elements selected late are up to
        ``(1 - beta1) / sqrt(1 - beta2)`` times ``lr``, 3.2 by default.

        A recorder of deltas ends here: take ``delta()`` before, and ``record_delta()`` again. So do CUDA graphs.

        Raises:
            TypeError, ValueError: the optimizer has no mask, or parameters, which are named, do not match the new one;
                the optimizer is then unchanged.
            RuntimeError: gradients are accumulated in ``step_in_backward``.
        """
        require_mask(mask)
        if mask is None or self.mask is None:
            raise TypeError("update_mask takes a ParameterMask in place of another: full and empty ones are masks too")
        groups = [group for group in self.param_groups if group["mask_digest"] == self.mask.digest]
        slots = match(groups, mask)
        if self._in_backward is not None:
            self._in_backward.forget_mask()
        self.synchronize()
        kept = self._kept
        moved = {
            parameter: kept.moved(self.state[parameter], parameter, self._slots[parameter], slot)
            for parameter, slot in slots.items()
            if self.state.get(parameter) and slot.tuned
        }
        for parameter, slot in slots.items():
            self._slots[parameter] = slot
            self.state.pop(parameter, None)
        self.state.update(moved)
        for group in groups:
            group["mask_digest"] = mask.digest
        self.mask = mask
        self._launches.forget_masks()
        if self._copies is not None:
            self._copies = WeightCopies(self._slots, self.state)
        self._forget_launches()

    def _require_options(self, group: dict[str, Any]) -> None:
        given = {name: group[name] for name in (*self.defaults, *IMPLEMENTATION) if name in group}
        whole_optimizer = {"master_weights": self.master_weights, "moment_bits": self.moment_bits}
        require_options({**self.defaults, **whole_optimizer, **given})

    def _adopt(self, groups: list[dict[str, Any]], mask: ParameterMask | None) -> None:
        """Matches the parameters of groups that share a mask."""
        free = [(parameter, slot) for parameter, slot in self._slots.items() if slot.mask is None]
        first_block = max((slot.first_block + -(-parameter.numel() // BLOCK) for parameter, slot in free), default=0)
        slots = match(groups, mask, first_block)
        if self.offload:
            require_offloadable(slots, compact=self.compact)
        self._slots.update(slots)
        for group in groups:
            group["mask_digest"] = None if mask is None else mask.digest
            if (self.compact or self.moment_bits == 8) and (place := place_of(group, self._slots)) != (0, 1):
                group["place"] = place
        self._forget_launches()

    # -- stepping --------------------------------------------------------------------------------------

    @torch._disable_dynamo  # type: ignore[attr-defined] # a graph would be compiled again for every learning rate
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Takes one step on the selected elements of all parameters that have a gradient.

        Args:
            closure: evaluates the model again and returns the loss, which is then returned here.

        Raises:
            RuntimeError, TypeError: naming the parameter, before any memory of its group was written.
        """
        loss = None
        if self._in_backward is not None:
            self._in_backward.require_step(closure)
        if closure is not None:
            with torch.enable_grad(), self._in_backward.stepping() if self._in_backward else nullcontext():
                loss = closure()
        self._begin_step()
        for number in range(len(self.param_groups)):
            for part in self._parts(number):
                self._step_part(number, part)
        self._end_step()
        if self._in_backward is not None:
            self._in_backward.free()
        return loss

    def _begin_step(self) -> None:
        if not self._launches.are_of(self.state):
            self._forget_launches()
        if self._copies is not None:
            self._copies.refresh()
        if self._offload is not None:
            self._offload.begin()

    def _parts(self, number: int) -> Iterable[list[Tensor]]:
        """The parameters of a group that are stepped together."""
        group = self.param_groups[number]
        if self._in_backward is not None:  # most have been stepped
            left = [parameter for parameter in group["params"] if parameter.grad is not None]
            return [left] if left else []
        if self.offload:
            kept, names = self._kept, self._state_names(group)
            return split(group["params"], lambda parameter: kept.nbytes(parameter, self._slots.get(parameter), names))
        return [group["params"]]

    def _step_part(self, number: int, parameters: list[Tensor]) -> None:
        """Steps parameters of a group: all of them, or a list that begins with another parameter than other lists."""
        group = self.param_groups[number]
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        copied = () if self._copies is None else self._copies.own
        prepared, grads = self._launches.prepare(
            number, group, parameters, self._state_names(group), self.state, copied
        )
        for launch in prepared.launches:
            with named_errors(launch.names), self._on_device(launch) as lists:
                launch.step(
                    self.operator,
                    lists,
                    launch.grads(grads),
                    stochastic_rounding=group["stochastic_rounding"],
                    lr=_on(launch.device, prepared.lr_of(group)),
                    weight_decay=group["weight_decay"],
                    maximize=group["maximize"],
                    seed=group["seed"] ^ launch.place[0] << 32,  # every shard draws its own random numbers
                    grad_scale=_on(launch.device, grad_scale),
                    found_inf=_on(launch.device, found_inf),
                    **self._settings(group),
                )

    def _end_step(self) -> None:
        if self._copies is not None:
            self._copies.note(self.state)

    @contextmanager
    def step_in_backward(
        self,
        *,
        max_norm: float | None = None,
        ddp: "DistributedDataParallel | None" = None,
        watch: bool = False,
    ) -> Iterator[StepInBackward]:
        """Inside, every backward pass takes a step, and frees gradients as soon as they are complete.

        The bits are those of a step after the pass. Leave out ``step()``; ``step(closure)`` may stay. Step hooks and
        learning-rate schedulers see one step at the end of every pass. The result is a :class:`StepInBackward`: passes
        in its ``accumulate()`` only add to the gradients of the next one, of which the selected elements are kept.

        One call of ``backward()`` must be one pass over the graph: checkpoint with ``use_reentrant=False``. If it
        fails, some parameters have been stepped and others have not.

        Args:
            max_norm: clips as ``torch.nn.utils.clip_grad_norm_`` over all gradients of the optimizer. The selected
                elements are kept to the end of the pass, when the norm is known; with ``accumulate()``, all elements.
            ddp: the module that averages the gradients of replicas; made with ``gradient_as_bucket_view=True``, it
                keeps them in buckets. Accumulate with its ``no_sync()``. FSDP2 needs nothing.
            watch: notes the largest value of every gradient, :attr:`StepInBackward.largest`: whether one was NaN or
                infinite is known only when others have been stepped.

        Raises:
            TypeError, ValueError: naming the argument.
            RuntimeError: already inside.
        """
        require_max_norm(max_norm)
        if self._in_backward is not None:
            raise RuntimeError("step_in_backward: this optimizer is inside one already")
        if self._offload is None:
            for group in self.param_groups:
                self._launches.reserve(group, self._state_names(group), self.state)
        steps = Steps(self._begin_step, self._step_part, self._end_step, lambda: self.step())
        with StepInBackward(steps, self._slots, self.param_groups, max_norm, ddp, watch=watch) as self._in_backward:
            try:
                yield self._in_backward
            finally:
                self._in_backward = None
                self._launches.reserved.clear()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch; also drops what :meth:`StepInBackward.accumulate` has kept."""
        super().zero_grad(set_to_none)
        if self._in_backward is not None:
            self._in_backward.drop()

    @contextmanager
    def _on_device(self, launch: Launch) -> Iterator[Lists]:
        """The lists of the operator; offloaded state is there inside."""
        if self._offload is None:
            yield self._lists(launch, {})
            return
        with self._offload.on_device(launch) as state:
            yield self._lists(launch, state)

    def _lists(self, launch: Launch, offloaded: Lists) -> Lists:
        lists = {"params": launch.parameters, "steps": launch.state("step")}
        for name in self.moments:
            lists[f"{name}s"] = (offloaded.get(name) or launch.state(name)) if name in launch.state_names else []
        if launch.has_masters:
            lists["masters"] = offloaded.get("master") or launch.state("master")
        elif launch.has_copies and self._copies is not None:
            lists["masters"] = [self._copies.own[parameter] for parameter in launch.whole_parameters]
        return lists

    def _settings(self, group: dict[str, Any]) -> dict[str, Any]:
        """The options of a group that only this operator takes."""
        raise NotImplementedError

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Those of :attr:`moments` that the options of a group ask for."""
        raise NotImplementedError

    def _forget_launches(self) -> None:
        self._launches.forget()
        if self._offload is not None:
            self._offload.forget()

    def record_delta(self, *, keep_copy: bool = False) -> DeltaRecorder:
        """Notes the selected weights; ``delta()`` of the result is what steps have changed since then.

        Args:
            keep_copy: steps also write the selected weights to consecutive memory (4 bytes each; of 16-bit weights the
                master weights are that), so that a delta is a copy of it, in a tenth of the time. Compact state only.
                Weights that something else writes are taken again, unless autograd cannot see it (``.data``, NumPy):
                the next step undoes such writes to selected elements.

        Raises:
            TypeError: naming a parameter of which this process holds a part.
            ValueError: naming what does not go with ``keep_copy``.
        """
        recorder = DeltaRecorder(self._slots, self._copies_of)
        if keep_copy:
            if self.offload:
                raise ValueError("keep_copy is not valid with offload=True")
            require_copyable(self._slots, self.param_groups, compact=self.compact, master_weights=self.master_weights)
            self._copies = WeightCopies(self._slots, self.state)
            self._forget_launches()
        return recorder

    def _copies_of(self, parameters: Sequence[Tensor]) -> list[Tensor] | None:
        """Their selected elements in float32 and index order, if such copies are kept and up to date."""
        return None if self._copies is None else self._copies.current(parameters, self.state)

    # -- state -----------------------------------------------------------------------------------------

    @property
    def _kept(self) -> KeptState:
        return KeptState(self.moments, self.required, self.compact, self.moment_bits, self.master_weights, self.offload)

    def synchronize(self) -> None:
        """Waits until offloaded state, which steps copy in the background, is as the last step left it."""
        if self._offload is not None:
            self._offload.synchronize()

    def state_dict(self) -> dict[str, Any]:
        """As in torch; waits for offloaded state."""
        self.synchronize()
        return super().state_dict()

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads state saved by this optimizer, dense or compact, or by torch's optimizer of the same kind.

        State is copied. Only the selected elements of dense state are used; the unselected elements of a dense copy of
        compact state are zero.

        Raises:
            TypeError, ValueError: another mask, other param groups, options that this optimizer refuses, or state that
                does not fit a parameter, which is named; the optimizer is then unchanged.
        """
        # Registered last, so that it runs after the user's hooks.
        handle = self.register_load_state_dict_pre_hook(
            lambda _, saved: self._kept.converted_all(saved, self.param_groups, self._slots, self._require_options)
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        self.synchronize()
        own = {name: self.__dict__[name] for name in _PICKLED}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for parameter, entry in self.state.items():
            if isinstance(entry, Loaded):
                self.state[parameter] = entry.state
        for group in self.param_groups:
            for option, default in self.defaults.items():
                # torch adds "differentiable" to the defaults here; groups of a new optimizer lack it, and
                # torch.distributed.checkpoint only loads groups with the same options.
                if option != "differentiable":
                    group.setdefault(option, default)
        self._offload = self.__dict__.get("_offload") or (Offload() if self.offload else None)
        self._copies = self.__dict__.get("_copies")
        self._in_backward = self.__dict__.get("_in_backward")
        self._launches = Launches(self._kept, self._slots)
        self._forget_launches()


def _on(device: torch.device, value: Any) -> Tensor | None:
    """A one-element tensor on a device, else None: GradScaler sets a plain 0 if there were no gradients."""
    return value.to(device) if isinstance(value, Tensor) else None
