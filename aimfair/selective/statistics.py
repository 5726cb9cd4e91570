"""Accumulators of gradients per source and parameter, and the scores computed from them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, SupportsIndex, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from aimfair.selective import ops
from aimfair.selective.choices import Criterion, as_int
from aimfair.selective.collectives import gathered_objects, sum_in_place
from aimfair.selective.distributed import Whole
from aimfair.selective.ops import AccumulatePlan, Plan
from aimfair.selective.parameters import listing, named_errors
from aimfair.selective.plans import PlanCache
from aimfair.selective.score import Score
from aimfair.selective.streams import is_capturing

Statistics = Literal["all", "sum", "square", "signed"]
"""Accumulators per element, in float32: the sums of g and of g^2 of every source (``all``), one of the two, or one
signed sum ``mean g_A - mean g_B`` for every contrast (A, B) (``signed``)."""

Contrasts = Mapping[str, tuple[str, str]]

CONTRAST_CRITERIA = ("difference", "relative_difference", "norm_ratio", "cosine")
SOURCE_CRITERIA = ("fisher", "magnitude")

_KEPT: dict[str, tuple[str, ...]] = {"all": ("sum", "square"), "sum": ("sum",), "square": ("square",), "signed": ()}
_NEEDED = {
    "difference": "sum",
    "relative_difference": "sum",
    "norm_ratio": "square",
    "cosine": "sum",
    "fisher": "square",
    "magnitude": "sum",
}
ALIGNMENT = 16
"""Floats: every tensor in a buffer begins on a cache line."""

_MOST_PLANNED = 2**17  # parameters in all plans: sets of them may be others in every batch, as with experts


def buffer_starts(numels: Iterable[int]) -> list[int]:
    """Where tensors of these sizes begin in a buffer, and its length."""
    return list(accumulate((-(-numel // ALIGNMENT) * ALIGNMENT for numel in numels), initial=0))


def default_contrasts(sources: Sequence[str]) -> Contrasts:
    """The contrasts of two or three sources, see ``Sensitivity``; else none."""
    if len(sources) == 3:
        return {"domain": (sources[0], sources[1]), "bias": (sources[1], sources[2])}
    return {"bias": (sources[0], sources[1])} if len(sources) == 2 else {}


def domain_criterion_of(criterion: Criterion, domain_criterion: Criterion | None) -> Criterion:
    """The criterion of the domain score; ValueError if it does not compare two sources."""
    if domain_criterion is None:
        return criterion if criterion in CONTRAST_CRITERIA else "difference"
    if domain_criterion not in CONTRAST_CRITERIA:
        raise ValueError(f"domain_criterion={domain_criterion!r}: expected one of {', '.join(CONTRAST_CRITERIA)}")
    return domain_criterion


@dataclass(frozen=True)
class _Addition:
    """The accumulators of one source and some parameters, their weights, and the plan of the last batch."""

    lists: dict[str, Any]
    weights: dict[str, float]
    plans: PlanCache[AccumulatePlan]


class GradientStatistics:
    """Sums over batches, per source: of g and g^2 per element, of |g|^2 and of non-finite values per parameter.

    Attributes:
        batches: batches counted per source.
        interrupted: sources that hold part of a batch, unusable until :meth:`reset`.
        reduced: these are sums over several processes (:meth:`reduce`).
    """

    def __init__(
        self,
        names: Sequence[str],
        holding: Whole,
        device: torch.device,
        sources: Sequence[str],
        statistics: Statistics,
        contrasts: Contrasts,
        declared: Mapping[str, SupportsIndex] | None,
    ):
        self.names, self.shapes, self.device, self._holding = tuple(names), holding.shapes, device, holding
        self.sources, self.statistics, self.contrasts = tuple(sources), statistics, dict(contrasts)
        self.declared: dict[str, int] | None = as_int(declared)
        self._check_arguments()
        self.batches = dict.fromkeys(self.sources, 0)
        self.interrupted: set[str] = set()
        self.reduced = False

        self._square_norms = torch.zeros(len(self.sources), len(self.names), dtype=torch.float64, device=device)
        self._nonfinite = torch.zeros(len(self.sources), len(self.names), dtype=torch.int64, device=device)
        self._rows = {
            source: (norms, nonfinite)
            for source, norms, nonfinite in zip(self.sources, self._square_norms, self._nonfinite, strict=True)
        }
        keys = [f"{kept}/{source}" for source in self.sources for kept in _KEPT[statistics]]
        if statistics == "signed":
            keys = [f"signed/{contrast}" for contrast in self.contrasts]
        self._numels = [math.prod(shape) for shape in self.shapes]
        self._places: dict[tuple[int, ...], Tensor] = {}
        self._additions: dict[tuple[str, tuple[int, ...]], _Addition] = {}
        self._of_graphs: list[Plan] = []
        self._buffers: dict[str, Tensor] = {}
        self._views: dict[str, list[Tensor]] = {}
        for key in keys:
            self._buffers[key], self._views[key] = self._allocate()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_additions": {}, "_of_graphs": []}  # plans hold addresses of this object's tensors

    def _check_arguments(self) -> None:
        if self.statistics not in get_args(Statistics):
            raise ValueError(f"statistics={self.statistics!r}: expected one of {', '.join(get_args(Statistics))}")
        if not self.sources or len(set(self.sources)) != len(self.sources):
            raise ValueError(f"sources={self.sources}: expected at least one name, without duplicates")
        for name, pair in self.contrasts.items():
            if len(pair) != 2 or len(set(pair) & set(self.sources)) != 2:
                raise ValueError(f"contrast {name!r} is {pair}, expected two of the sources {', '.join(self.sources)}")
        if self.statistics != "signed":
            if self.declared is not None:
                raise ValueError('batches is only valid for statistics="signed"; otherwise they are counted')
            return
        counts = self.declared or {}
        if set(counts) != set(self.sources) or any(type(one) is not int or one < 1 for one in counts.values()):
            raise ValueError(f"signed statistics need batches, the number for each of {', '.join(self.sources)}")
        for source in self.sources:
            if sum(source in pair for pair in self.contrasts.values()) > 2:
                raise ValueError(f"signed statistics: source {source!r} is in more than two contrasts")

    def _allocate(self) -> tuple[Tensor, list[Tensor]]:
        starts = buffer_starts(self._numels)
        flat = torch.zeros(starts[-1], dtype=torch.float32, device=self.device)
        return flat, [flat[start : start + n] for start, n in zip(starts, self._numels, strict=False)]

    # -- adding ----------------------------------------------------------------------------------------

    def add(
        self,
        source: str,
        indices: Sequence[int],
        grads: list[Tensor],
        grad_scale: Tensor | None = None,
        *,
        zero_grads: bool = False,
    ) -> None:
        """Adds the gradients of the parameters at ``indices`` (ascending); the caller counts batches.

        Raises:
            TypeError: a sparse gradient.
        """
        all_norms, all_nonfinite = self._rows[source]
        count = len(indices)
        if whole := indices[-1] - indices[0] + 1 == count:
            norms, nonfinite = (row.narrow(0, indices[0], count) for row in (all_norms, all_nonfinite))
        else:
            norms, nonfinite = all_norms.new_zeros(count), all_nonfinite.new_zeros(count)
        addition = self._addition(source, tuple(indices))
        settings = {"square_norms": norms, "nonfinite": nonfinite, "grad_scale": grad_scale, **addition.weights}
        with named_errors(lambda: [self.names[index] for index in indices]):
            if (plan := addition.plans.find(grads, options=zero_grads)) is not None:
                ops.planned_accumulate_(plan, **settings)
            else:
                self._add_without_plan(addition, indices, grads, zero_grads, settings)
        if not whole:
            where = self._place_of(tuple(indices))
            all_norms.index_add_(0, where, norms)
            all_nonfinite.index_add_(0, where, nonfinite)

    def _place_of(self, indices: tuple[int, ...]) -> Tensor:
        """The indices on the device, cached: copying them would synchronize."""
        if indices not in self._places:
            self._places[indices] = torch.tensor(indices, device=self.device)
        return self._places[indices]

    def _add_without_plan(
        self,
        addition: _Addition,
        indices: Sequence[int],
        grads: list[Tensor],
        zero_grads: bool,
        settings: dict[str, Any],
    ) -> None:
        """Makes a plan for the next time, unless gradients must be copied or a graph is being captured."""
        dense = [self._dense(index, grad) for index, grad in zip(indices, grads, strict=True)]
        copied = [grad for grad, copy in zip(grads, dense, strict=True) if grad is not copy]
        if copied or is_capturing(self.device):
            ops.accumulate_(dense, **addition.lists, **settings, zero_grads=zero_grads)
        else:
            plan = ops.plan_accumulate(grads, **addition.lists, zero_grads=zero_grads)
            held = list(addition.lists.values())
            addition.plans.keep(plan, grads, held, options=zero_grads, writes_grads=zero_grads)
            ops.planned_accumulate_(plan, **settings)
        for grad in copied if zero_grads else ():
            grad.detach().zero_()

    def _dense(self, index: int, grad: Tensor) -> Tensor:
        if grad.layout is not torch.strided:
            name = self.names[index]
            raise TypeError(f"the gradient of {name!r} has layout {grad.layout}; make it dense (sparse=False)")
        return grad if grad.is_contiguous() else grad.contiguous()

    def _addition(self, source: str, indices: tuple[int, ...]) -> _Addition:
        if (source, indices) not in self._additions:
            if sum(len(planned) for _, planned in self._additions) > _MOST_PLANNED:
                self._additions.clear()
            lists, weights = self._targets(source, indices)
            plans = PlanCache[AccumulatePlan](self.device, self._of_graphs)
            self._additions[source, indices] = _Addition(lists, weights, plans)
        return self._additions[source, indices]

    def _targets(self, source: str, indices: tuple[int, ...]) -> tuple[dict[str, Any], dict[str, float]]:
        """The accumulators that gradients are added to, and their weights, by the arguments of ``accumulate_``."""

        def views(key: str) -> list[Tensor]:
            found = self._views.get(key, [])
            return found if len(indices) == len(found) else [found[index] for index in indices if found]

        if self.declared is None:
            return {"sums": views(f"sum/{source}"), "squares": views(f"square/{source}")}, {}
        signed = [
            (views(f"signed/{contrast}"), (1.0 if source == pair[0] else -1.0) / self.declared[source])
            for contrast, pair in self.contrasts.items()
            if source in pair
        ]
        signed += [([], 0.0)] * (2 - len(signed))
        (sums, weight), (second_sums, second_weight) = signed
        lists = {"sums": sums, "squares": [], "second_sums": second_sums}
        return lists, {"weight": weight, "second_weight": second_weight}

    def reset(self, source: str | None = None) -> None:
        """Clears a source, or all of them; signed statistics mix sources and are only cleared together."""
        if source is not None and self.statistics == "signed":
            raise ValueError("signed statistics mix the sources: only reset() of all of them is possible")
        for name in self.sources if source is None else (source,):
            for row in self._rows[name]:
                row.zero_()
            self.batches[name] = 0
            self.interrupted.discard(name)
        if source is None:
            self.reduced = False
        for key, buffer in self._buffers.items():
            if source is None or key.partition("/")[2] == source:
                buffer.zero_()

    def reduce(self, group: dist.ProcessGroup | None) -> None:
        """Sums everything over processes of the same :meth:`config`, see ``Sensitivity.reduce``."""
        found = gathered_objects((self.reduced, sorted(self.interrupted)), (group,))
        for rank, (reduced, interrupted) in found.items():
            if reduced:
                raise RuntimeError("reduce() has already summed the statistics; reset() and accumulate again")
            if interrupted:
                raise RuntimeError(
                    f"reduce(): source {interrupted[0]!r} holds part of a batch in process {rank};"
                    " reset() and accumulate again"
                )
        batches = torch.tensor([self.batches[source] for source in self.sources], device=self.device)
        # Sorted: processes may have named the contrasts in different orders.
        for _, tensor in sorted(self.tensors().items()):
            sum_in_place(tensor, group)
        sum_in_place(batches, group)
        self.batches = dict(zip(self.sources, batches.tolist(), strict=True))
        self.reduced = True

    # -- reading ---------------------------------------------------------------------------------------

    def square_norms(self, source: str) -> list[float]:
        """Sum over batches of |g|^2, per parameter."""
        return [float(norm) for norm in self._holding.total(self._rows[source][0]).tolist()]

    def nonfinite(self, source: str) -> dict[str, int]:
        """Parameter -> NaN and infinite gradient values skipped so far, if any."""
        counts = self._holding.total(self._rows[source][1])
        if not counts.any():
            return {}
        return {name: count for name, count in zip(self.names, counts.tolist(), strict=True) if count}

    def means(self, kept: Literal["sum", "square"], source: str) -> dict[str, Tensor]:
        """Parameter -> mean over batches of g or g^2, in the parameter's shape."""
        self._require(kept, "the mean" if kept == "sum" else "the mean square")
        views, batches = self._views[f"{kept}/{source}"], self.batches[source]
        if not batches:
            raise ValueError(f"source {source!r} has no batches yet")
        return {
            name: view.view(shape) / batches for name, shape, view in zip(self.names, self.shapes, views, strict=True)
        }

    def contrast_score(self, criterion: str, contrast: str, eps: float) -> Score:
        """The score of a criterion that compares the two sources of a contrast."""
        if contrast not in self.contrasts:
            known = f"there is {listing(self.contrasts)}" if self.contrasts else "there is none"
            raise ValueError(f"this rule needs the contrast {contrast!r}, {known}; name it in contrasts=")
        norms = self._ready_norms(self.contrasts[contrast])
        if self.statistics == "signed":
            if criterion != "difference":
                self._require(_NEEDED[criterion], f"criterion {criterion!r}")
            self._require_range(f"signed/{contrast}", [one for of in norms.values() for one in of])
            return Score("magnitude", self._views[f"signed/{contrast}"], eps=eps)
        kept = _NEEDED[criterion]
        self._require(kept, f"criterion {criterion!r}")
        for source in self.contrasts[contrast]:
            self._require_range(f"{kept}/{source}", norms[source])
        (a, scale_a), (b, scale_b) = (
            (self._views[f"{kept}/{source}"], 1.0 / self.batches[source]) for source in self.contrasts[contrast]
        )
        return Score(criterion, a, b, scale_a, scale_b, eps=eps)  # type: ignore[arg-type]

    def source_score(self, criterion: str, source: str, eps: float) -> Score:
        """The score of a criterion of one source: ``fisher`` (mean g^2) or ``magnitude`` (\\|mean g\\|)."""
        self._require(_NEEDED[criterion], f"criterion {criterion!r}")
        norms = self._ready_norms((source,))
        self._require_range(f"{_NEEDED[criterion]}/{source}", norms[source])
        views, scale = self._views[f"{_NEEDED[criterion]}/{source}"], 1.0 / self.batches[source]
        return Score("magnitude", views, scale_a=scale, eps=eps)

    def _require(self, kept: str, wanted_by: str) -> None:
        if kept not in _KEPT[self.statistics]:
            raise ValueError(
                f"{wanted_by} needs the {kept}s of the sources, which statistics={self.statistics!r} does not keep;"
                f' accumulate with statistics="all" or "{kept}"'
            )

    def _ready_norms(self, sources: Iterable[str]) -> dict[str, list[float]]:
        """The square norms of sources that are to be scored; refuses those without batches, with other counts than
        declared, or with only zero gradients."""
        found = {}
        for source in sources:
            if source in self.interrupted:
                raise RuntimeError(f"source {source!r} holds part of a batch; reset() and accumulate again")
            if not self.batches[source]:
                raise ValueError(f"source {source!r} has no batches yet")
            if self.declared is not None and self.batches[source] != self.declared[source]:
                raise ValueError(
                    f"source {source!r} has {self.batches[source]} batches, {self.declared[source]} were declared"
                )
            found[source] = self.square_norms(source)
            if not any(found[source]):
                raise ValueError(f"every gradient of source {source!r} was zero: there is nothing to rank")
        return found

    def _require_range(self, key: str, norms: Iterable[float]) -> None:
        """Refuses accumulators that exceed float32, in any process; gradients below 1e19 are not looked at.

        Args:
            norms: square norms of the sources that the accumulators are of.
        """
        if all(map(math.isfinite, norms)):
            return
        bad = [int(not _is_finite(view)) for view in self._views[key]]
        counts = self._holding.total(torch.tensor(bad, device=self._square_norms.device)).tolist()
        large = [name for name, count in zip(self.names, counts, strict=True) if count]
        if large:
            raise FloatingPointError(f"{key} exceeds float32 in {listing(large)}; give grad_scale to update()")

    # -- disk ------------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """Everything but the accumulators, JSON-serializable."""
        return {
            "names": self.names,
            "shapes": self.shapes,
            "sources": self.sources,
            "statistics": self.statistics,
            "contrasts": self.contrasts,
            "declared": self.declared,
        }

    def shards(self) -> tuple[dict[str, list[Tensor]], dict[str, Tensor]]:
        """By key: the accumulators of each parameter, flat views of what this process holds; and values of the whole
        parameters [sources, T], a collective."""
        totals = {
            key: torch.stack([self._holding.total(row) for row in values])
            for key, values in (("square_norms", self._square_norms), ("nonfinite", self._nonfinite))
        }
        return self._views, totals

    def restore(self, batches: Mapping[str, int], values: Mapping[str, Tensor]) -> None:
        """Sets the batches, and this process's part of the values per parameter."""
        self.batches = {source: int(batches[source]) for source in self.sources}
        self._square_norms.copy_(values["square_norms"])
        self._nonfinite.copy_(values["nonfinite"])

    def tensors(self) -> dict[str, Tensor]:
        return {**self._buffers, "square_norms": self._square_norms, "nonfinite": self._nonfinite}

    def require_finite(self) -> None:
        """Raises FloatingPointError, by accumulator and parameter, for NaN and infinity: of a damaged file, or of
        gradients whose sums or squares exceed float32."""
        for key, buffer in self._buffers.items():
            if not _is_finite(buffer):
                self._refuse(key, self._views[key])
        for source, (norms, _) in self._rows.items():
            if not _is_finite(norms):
                self._refuse(f"square_norms/{source}", norms.split(1))

    def _refuse(self, key: str, values: Sequence[Tensor]) -> None:
        bad = (name for name, value in zip(self.names, values, strict=True) if not _is_finite(value))
        raise FloatingPointError(f"{key} holds NaN or infinite values in {listing(bad) or 'its padding'}")


def _is_finite(tensor: Tensor) -> bool:
    """In parts, since isfinite allocates."""
    return all(bool(part.isfinite().all()) for part in torch.split(tensor, 2**22))
