"""What a masked optimizer keeps of its parameters, and how it takes over state that another has saved."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from aimfair.selective import moments
from aimfair.selective import state as state_layout
from aimfair.selective.distributed import local
from aimfair.selective.moments import MomentBits
from aimfair.selective.offload import aligned
from aimfair.selective.options import IMPLEMENTATION
from aimfair.selective.state import Slot

Groups = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Loaded:
    """Loaded state in its final form.

    ``Optimizer.load_state_dict`` casts tensors in collections to the dtype of the parameter, which would round the
    float32 state of bfloat16 weights; inside this class, which is no collection, they pass unchanged.
    """

    state: dict[str, Tensor]


@dataclass(frozen=True)
class KeptState:
    """The form of an optimizer's state.

    Attributes:
        moments: names of all state tensors that a parameter can have, besides "step" and "master".
        required: those that loaded state must have.
    """

    moments: tuple[str, ...]
    required: tuple[str, ...]
    compact: bool
    moment_bits: MomentBits
    master_weights: bool
    offload: bool

    def has_master(self, parameter: Tensor) -> bool:
        return self.master_weights and parameter.dtype != torch.float32

    def nbytes(self, parameter: Tensor, slot: Slot | None, names: Sequence[str]) -> int:
        """What compact state of a parameter takes in host memory, without "step"."""
        if slot is None or not slot.tuned:
            return 0
        dtype = moments.DTYPES[self.moment_bits]
        of_moment = aligned(dtype.itemsize * moments.length(dtype, parameter.numel(), slot.nnz))
        return len(names) * of_moment + (aligned(4 * slot.nnz) if self.has_master(parameter) else 0)

    def allocate(self, state: dict[str, Tensor], parameter: Tensor, slot: Slot, names: Sequence[str]) -> None:
        """Adds what is missing in a parameter's state.

        Args:
            names: of the moments.
        """
        self.allocate_moments(state, parameter, slot, names)
        if self.has_master(parameter) and "master" not in state:
            state["master"] = state_layout.take(parameter, slot, self.compact)

    def allocate_moments(self, state: dict[str, Tensor], parameter: Tensor, slot: Slot, names: Sequence[str]) -> None:
        """All but the master weights."""
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        for name in names:
            if name not in state:
                state[name] = state_layout.zeros(parameter, slot, self.compact, self.moment_bits)

    def converted(self, saved: Mapping[str, Any], parameter: Tensor, slot: Slot) -> dict[str, Tensor]:
        """A copy of saved state of any layout and precision, in this form.

        Raises:
            ValueError: naming the parameter.
        """
        if lacking := [name for name in self.required if saved.get(name) is None]:
            raise ValueError(f"the state of {slot.name!r} has no {lacking[0]}: it is not of this kind of optimizer")
        found = {name: saved[name] for name in self.moments if saved.get(name) is not None}
        # torch.optim.SGD counts no steps: its momentum buffer tells the first step from the others.
        step = torch.as_tensor(saved.get("step", float(bool(found))), dtype=torch.float32, device=parameter.device)
        state = {"step": step.clone().reshape(())}
        for name, value in found.items():
            root = name == "exp_avg_sq"
            state[name] = state_layout.convert_moment(value, parameter, slot, self.compact, self.moment_bits, root=root)
        if self.has_master(parameter) and saved.get("master") is not None:
            state["master"] = state_layout.convert(saved["master"], parameter, slot, self.compact, background=parameter)
        return self._where_kept(state)

    def _where_kept(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Offloaded state at once on the host: that of all parameters may be more than the GPU has."""
        return {name: value.cpu() if self.offload and name != "step" else value for name, value in state.items()}

    def moved(self, state: Mapping[str, Tensor], parameter: Tensor, old: Slot, new: Slot) -> dict[str, Tensor]:
        """State under another mask: elements that stay selected keep theirs, new ones have zero and the weight."""
        stay = _both(old, new).to(parameter.device)
        result = {"step": state["step"]}
        for name in self.moments:
            if name in state:
                root = name == "exp_avg_sq"
                dense = state_layout.convert_moment(state[name], parameter, old, False, 32, root=root)
                local(dense).masked_fill_(~stay, 0)
                result[name] = state_layout.convert_moment(
                    dense, parameter, new, self.compact, self.moment_bits, root=root
                )
        if "master" in state:
            dense = state_layout.convert(state["master"], parameter, old, False, background=parameter)
            local(dense).copy_(torch.where(stay, local(dense), local(parameter).detach()))
            result["master"] = state_layout.convert(dense, parameter, new, self.compact)
        return self._where_kept(result)

    def converted_all(
        self,
        state_dict: Mapping[str, Any],
        groups: Groups,
        slots: Mapping[Tensor, Slot],
        require_options: Callable[[dict[str, Any]], None],
    ) -> dict[str, Any] | None:
        """A whole ``state_dict()`` in this form, for torch to load; None if torch will refuse it.

        Args:
            groups: of the optimizer.
            require_options: refuses options of a group.

        Raises:
            TypeError, ValueError: as ``MaskedOptimizer.load_state_dict``.
        """
        saved_groups = state_dict["param_groups"]
        if [len(group["params"]) for group in saved_groups] != [len(group["params"]) for group in groups]:
            return None
        for number, (saved, group) in enumerate(zip(saved_groups, groups, strict=True)):
            # Not those by which torch chooses an implementation: they change nothing here.
            require_options({name: value for name, value in saved.items() if name not in IMPLEMENTATION})
            _require_same_part(number, saved, group, place_of(group, slots))
        ids = chain.from_iterable(group["params"] for group in saved_groups)
        parameters = dict(zip(ids, chain.from_iterable(group["params"] for group in groups), strict=True))
        state = {}
        for key, entry in state_dict["state"].items():
            if (parameter := parameters.get(key)) is None:
                state[key] = entry
            elif parameter in slots and slots[parameter].tuned and entry:
                state[key] = Loaded(self.converted(entry, parameter, slots[parameter]))
        own_keys = ("mask_digest", "place")
        merged = [
            {
                **{key: value for key, value in saved.items() if key not in own_keys},
                **{key: group[key] for key in own_keys if key in group},
            }
            for saved, group in zip(saved_groups, groups, strict=True)
        ]
        return {**state_dict, "state": state, "param_groups": merged}


def _both(one: Slot, other: Slot) -> Tensor:
    """Which elements both select."""
    first, second = one.selected(), other.selected()
    assert first is not None
    assert second is not None
    return first & second.to(first.device)


def place_of(group: Mapping[str, Any], slots: Mapping[Tensor, Slot]) -> tuple[int, int]:
    """(rank, number) of this process among those that hold parameters of the group together."""
    places = (slots[parameter].place for parameter in group["params"] if parameter in slots)
    return max(places, key=lambda place: place[1], default=(0, 1))


def _require_same_part(
    number: int, saved: Mapping[str, Any], group: Mapping[str, Any], own_place: tuple[int, int]
) -> None:
    """ValueError if the state of a group is for another mask, or another process's."""
    digest, place = saved.get("mask_digest"), saved.get("place")
    if digest not in (None, group["mask_digest"]):
        own = group["mask_digest"] or "no mask"
        raise ValueError(f"param group {number}: the state is for mask {digest[:12]}, not for {own[:12]}")
    if place is not None and tuple(place) != own_place:
        raise ValueError(
            "param group {}: the state is part {} of {}, this process holds {} of {}".format(number, *place, *own_place)
        )
