"""Gradient sensitivity of a model to several data sources, and selecting masks by it."""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Self, SupportsIndex, get_args

import torch
from torch import Tensor

from aimfair.selective import storage
from aimfair.selective.capture import GradientCapture
from aimfair.selective.choices import Criterion, Granularity, Number, Rule, Within, as_int
from aimfair.selective.collectives import require_same, several_processes
from aimfair.selective.distributed import holding_of, is_dtensor, local_grad
from aimfair.selective.mask import ParameterMask
from aimfair.selective.parameters import (
    Parameters,
    listing,
    named_parameters,
    require_one_device,
    require_tunable,
    shapes_of,
)
from aimfair.selective.score import Score
from aimfair.selective.segments import Density, for_all
from aimfair.selective.selection import Ranking, by_scores, head_names, names_under, require_arguments
from aimfair.selective.statistics import (
    CONTRAST_CRITERIA,
    SOURCE_CRITERIA,
    Contrasts,
    GradientStatistics,
    Statistics,
    default_contrasts,
    domain_criterion_of,
)
from aimfair.selective.streams import refuse_capture
from aimfair.selective.summary import SensitivitySummary

GradScale = Tensor | float | torch.amp.GradScaler | None
"""The scale of the gradients: a number, a tensor with one element, or the scaler itself."""

KIND, VERSION = "aimfair.sensitivity", 1
"""Kind and version in a sensitivity file."""


class Sensitivity:
    """Accumulates gradients per source, then selects parameters by how their gradients differ between sources.

    ::

        probe = Sensitivity(model, sources=("real_biased", "synthetic_biased", "synthetic_fair"))
        for source, batches in data.items():
            for x, y in batches:
                loss_fn(model(x), y).backward()
                probe.update(source)
        mask = probe.select("intersection", bias_density=0.3, domain_density=0.3)

    Args:
        parameters: a module, a dict name -> parameter, or (name, parameter) pairs. Masks will be
            over those that require a gradient now; a tied parameter counts once. All on one device, contiguous,
            float32, bfloat16 or float16.
        sources: names of the data sources.
        statistics: see :data:`Statistics`; ``all`` takes 8 bytes per parameter and source, ``sum`` and
            ``square`` 4, ``signed`` 4 per parameter and contrast.
        batches: for ``signed``, the number of batches of each source.
        contrasts: name -> (A, B), the pairs of sources that criteria compare. Of three sources (s0, s1, s2) the default
            is ``domain: (s0, s1)`` and ``bias: (s1, s2)``; of two ``bias: (s0, s1)``; else none.
        nonfinite: NaN and infinite gradient values are counted and never enter the statistics. ``raise`` also raises:
            at once on the CPU in a single process, else in :meth:`select`, in all processes. ``ignore`` continues.

    Several processes: with parameters of ``fully_shard`` (FSDP2), each process keeps the statistics of its shards, and
    :meth:`select`, :meth:`unit_scores`, :meth:`square_norm` and :meth:`summary` are collectives: all processes call
    them with the same arguments after the same numbers of batches, and get the same result over the whole parameters. A
    difference raises in all of them and is named. For replicas see :meth:`reduce`.

    Raises:
        TypeError, ValueError: naming the parameter or the argument.
    """

    def __init__(
        self,
        parameters: Parameters,
        sources: Iterable[str] = ("real_biased", "synthetic_biased", "synthetic_fair"),
        *,
        statistics: Statistics = "all",
        batches: Mapping[str, SupportsIndex] | None = None,
        contrasts: Contrasts | None = None,
        nonfinite: Literal["raise", "ignore"] = "raise",
    ):
        if isinstance(sources, str):
            raise TypeError(f"sources={sources!r}: expected several names, not a string")
        if nonfinite not in ("raise", "ignore"):
            raise ValueError(f'nonfinite={nonfinite!r}: expected "raise" or "ignore"')
        sources = tuple(sources)
        named = named_parameters(parameters)
        require_tunable(named.items())
        device = require_one_device(named)
        if contrasts is None:
            contrasts = default_contrasts(sources)
        self._named, self._parameters, self._nonfinite = named, list(named.values()), nonfinite
        self._holding = holding_of(named)
        self._has_dtensors = any(is_dtensor(parameter) for parameter in self._parameters)
        self._statistics = GradientStatistics(
            tuple(named), self._holding, device, sources, statistics, contrasts, batches
        )

    # -- accumulating ----------------------------------------------------------------------------------

    @property
    def batches(self) -> dict[str, int]:
        """Batches counted per source."""
        return dict(self._statistics.batches)

    def update(self, source: str, *, grad_scale: GradScale = None, zero_grads: bool = True) -> None:
        """Adds the current gradients of the parameters as one batch of ``source``, in one pass.

        A parameter without a gradient adds zero.

        Args:
            grad_scale: gradients are divided by it; None if they are not scaled, or ``scaler.unscale_`` was called.
            zero_grads: set the gradients to zero in the same pass.

        Raises:
            RuntimeError: no parameter has a gradient, or :meth:`reduce` was called. TypeError: a sparse gradient, or
                one with other placements than its parameter.
            FloatingPointError: NaN or infinite gradients, by parameter (CPU, one process, ``nonfinite="raise"``).
        """
        self._require_open(source)
        grads = {i: grad for i, parameter in enumerate(self._parameters) if (grad := parameter.grad) is not None}
        if not grads:
            raise RuntimeError(f"update({source!r}): no parameter has a gradient; call backward() first")
        if self._has_dtensors:
            grads = {i: local_grad(self._statistics.names[i], self._parameters[i], grad) for i, grad in grads.items()}
        scale = self._scale_tensor(grad_scale)
        self._statistics.add(source, list(grads), list(grads.values()), scale, zero_grads=zero_grads)
        self._statistics.batches[source] += 1
        self._require_finite_on_cpu(source)

    def capture(
        self, source: str, *, accumulate_steps: SupportsIndex = 1, grad_scale: GradScale = None
    ) -> GradientCapture:
        """Context in which every backward pass adds to ``source`` and frees gradients as it counts them.

        Args:
            accumulate_steps: backward passes per batch; their gradients are summed first.
            grad_scale: as in :meth:`update`; the scale of a scaler is read at every backward pass.

        Raises:
            RuntimeError: left in the middle of a batch, which is then not counted; or :meth:`reduce` was called.
            TypeError: parameters of ``fully_shard``, whose gradients are summed over the processes after backward.
            FloatingPointError: from ``backward()``, as in :meth:`update`.
        """
        self._require_open(source)
        if self._has_dtensors:
            raise TypeError(
                f"capture({source!r}): these are parameters of several processes (DTensor), whose gradients are"
                " complete only after the backward pass; use update()"
            )
        steps = as_int(accumulate_steps)
        if type(steps) is not int or steps < 1:
            raise ValueError(f"accumulate_steps={steps!r}: expected an integer of at least 1")
        return GradientCapture(
            self._statistics,
            self._parameters,
            source,
            steps,
            lambda: self._scale_tensor(grad_scale),
            lambda: self._require_finite_on_cpu(source),
        )

    def require_finite(self) -> None:
        """Checks that the statistics can be saved and ranked; of a DTensor, of the part held here.

        Raises:
            FloatingPointError: sums of gradients, or of their squares, exceed float32, by source and parameter. Squares
                do from gradients of about 1e19.
        """
        self._statistics.require_finite()

    def reset(self, source: str | None = None) -> None:
        """Clears the statistics of a source, or of all (signed statistics: only of all)."""
        if source is not None:
            self._require_known(source)
        self._statistics.reset(source)

    def reduce(self, group: torch.distributed.ProcessGroup | None = None) -> None:
        """Sums the statistics, batch counts included, over replicas that each counted their own batches.

        A collective, called once at the end. Every process then holds the same bits and :meth:`select` gives the same
        mask; no further batch is accepted until :meth:`reset`. With ``signed`` statistics the declared ``batches`` are
        totals over all processes.

        Only for gradients that are *not* averaged: plain copies of a model, or DistributedDataParallel under
        ``no_sync()``. Gradients averaged by DistributedDataParallel are the same in every process, so one ``update`` in
        each counts the global batch; summing would count it once per process. Averaging cannot be detected here.

        Args:
            group: default all processes.

        Raises:
            TypeError: parameters of ``fully_shard``: their gradients are sums over the processes already.
            RuntimeError: called twice, or a source holds part of a batch.
            ValueError: in every process, if they differ in statistics, parameters or ``nonfinite``.
        """
        if self._has_dtensors:
            raise TypeError(
                "reduce(): these are parameters of several processes (DTensor), whose gradients are sums over the"
                " processes already"
            )
        require_same("reduce()", self._described(), (group,))
        self._statistics.reduce(group)

    def _require_open(self, source: str) -> None:
        self._require_source(source)
        if self._statistics.reduced:
            raise RuntimeError("reduce() has summed the statistics over the processes; reset() before a new batch")

    def _require_known(self, source: str) -> None:
        if source not in self._statistics.sources:
            raise ValueError(f"unknown source {source!r}, expected one of {', '.join(self._statistics.sources)}")

    def _require_source(self, source: str) -> None:
        self._require_known(source)
        if source in self._statistics.interrupted:
            raise RuntimeError(f"source {source!r} holds part of a batch; reset() and accumulate again")

    def _scale_tensor(self, grad_scale: GradScale) -> Tensor | None:
        device = self._statistics.device
        if grad_scale is None:
            return None
        if isinstance(grad_scale, torch.amp.GradScaler):
            return grad_scale.scale(torch.ones((), device=device))  # get_scale() would synchronize
        if isinstance(grad_scale, Tensor):
            return grad_scale.to(device, torch.float32)
        return torch.full((), grad_scale, dtype=torch.float32, device=device)  # copying would synchronize

    def _described(self) -> dict[str, Any]:
        """What must be equal in all processes of a collective call."""
        return {
            **self._statistics.config(),
            "shapes": shapes_of(self._parameters),  # of the whole parameters, not of the shards
            "nonfinite": self._nonfinite,
        }

    def _require_same(self, call: str, **arguments: Any) -> None:
        """First in every collective call: other processes would wait for one that raised alone."""
        batches = {f"the batches of {source!r}": count for source, count in self._statistics.batches.items()}
        self._holding.require_same(call, {**self._described(), **batches, **arguments})

    def _require_finite_on_cpu(self, source: str) -> None:
        # Elsewhere this would synchronize with the device, or leave other processes waiting.
        if self._statistics.device.type == "cpu" and not several_processes():
            self._require_finite((source,))

    def _require_finite(self, sources: Sequence[str]) -> None:
        if self._nonfinite == "ignore":
            return
        for source in sources:
            if counts := self._statistics.nonfinite(source):
                found = listing(f"{name} ({count})" for name, count in counts.items())
                raise FloatingPointError(
                    f"NaN or infinite gradients in source {source!r}: {found};"
                    ' reset() it, or accumulate with nonfinite="ignore" to skip these values'
                )

    # -- selecting -------------------------------------------------------------------------------------

    def select(
        self,
        rule: Rule = "intersection",
        *,
        criterion: Criterion = "difference",
        domain_criterion: Criterion | None = None,
        granularity: Granularity = "element",
        within: Within | None = None,
        density: Density = None,
        k: Number = None,
        bias_density: float | None = None,
        bias_k: SupportsIndex | None = None,
        domain_density: float | None = None,
        domain_k: SupportsIndex | None = None,
        eps: float = 1e-12,
        seed: int = 0,
        source: str | None = None,
        head: str | Sequence[str] | None = None,
        blocks: Sequence[str] | None = None,
        freeze: Sequence[str] = (),
    ) -> ParameterMask:
        """The mask of a rule. Exact and deterministic: ties go to the lowest index of the parameter list.

        ============== ===================================================================== ======================
        rule           selects                                                               size
        ============== ===================================================================== ======================
        top_k          the best by bias score                                                density or k
        intersection   the top of the units by bias score that are also among the bottom     bias_* and domain_*, or
                       by domain score                                                       density (as budget)
        ratio          the best by bias / (domain + eps)                                     density or k
        budget         the intersection of top k and bottom k, k the smallest that holds     density
        random         units drawn with ``seed``                                             density or k
        all            everything
        head_only      the last registered module that owns parameters, or ``head``
        blocks         all of the modules at these paths                                     blocks
        ============== ===================================================================== ======================

        The bias score is ``criterion`` on the contrast "bias", the domain score ``domain_criterion`` on "domain", each
        averaged over the elements of a unit. A contrast (A, B) is scored by

        - ``difference``: abs(mean g_A - mean g_B);
        - ``relative_difference``: that / (abs(mean g_A) + abs(mean g_B) + eps);
        - ``norm_ratio``: sqrt(mean g_B^2) / sqrt(mean g_A^2 + eps);
        - ``cosine``: 1 - cos(mean g_A, mean g_B) over the elements of a row or tensor; an element has none. Details and
          the case of a zero gradient: :func:`aimfair.selective.units.unit_scores`. ``ratio`` then divides unit scores.

        The bias score may also be ``fisher`` (mean g^2) or ``magnitude`` (abs(mean g)) of one ``source``.

        Args:
            domain_criterion: default ``criterion``, or ``difference`` if that is one of a single source.
            granularity: the unit that is ranked and selected, see :data:`Granularity`.
            within: for top_k and ratio, select in each row, tensor or group of tensors by itself, see :data:`Within`:
                ``density`` and ``k`` are of every segment, or mappings from the name of a tensor or group to its own.
                ``round(density * units)`` of a small segment may be 0; a k must not be more than a segment has.
            density: share of the units in (0, 1], exactly ``round(density * units)``; for budget, the least share of
                *elements*. 1 means 1.0, everything; a number of units is ``k``.
            k: number of units.
            bias_density, bias_k: how many units ``intersection`` takes from the top by bias score, one of the two.
            domain_density, domain_k: likewise from the bottom by domain score.
            source: for fisher and magnitude; optional if there is only one.
            head: path or paths of the classifier's last layer, if that is not the module registered last.
            blocks: paths of modules or parameters, such as "layer1.0".
            freeze: paths in which nothing is selected; sizes count the selection before these are removed.

        Raises:
            ValueError: arguments that are not valid for the rule or select nothing, a path without parameters,
                statistics that were not kept, sources without batches; on shards, arguments or batches that differ
                between processes.
            TypeError: ``blocks`` or ``freeze`` is a string.
            RuntimeError: a CUDA graph is being captured.
            FloatingPointError: non-finite gradients (``nonfinite="raise"``), or sums for this
                criterion that exceed float32.
        """
        refuse_capture("select()", self._statistics.device)
        sizes: dict[str, Any] = {
            "density": density, "k": as_int(k), "bias_density": bias_density, "bias_k": as_int(bias_k),
            "domain_density": domain_density, "domain_k": as_int(domain_k),
        }  # fmt: skip
        self._require_same(
            "select()", rule=rule, criterion=criterion, domain_criterion=domain_criterion, granularity=granularity,
            within=within, **sizes, eps=eps, seed=seed, source=source, head=head, blocks=blocks, freeze=freeze,
        )  # fmt: skip
        require_arguments(rule, **sizes, head=head, blocks=blocks)
        if within is None:
            for_all(density, k)
        elif rule not in ("top_k", "ratio"):
            raise ValueError(f"rule {rule!r} does not take within; top_k and ratio do")
        if isinstance(blocks, str) or isinstance(freeze, str):
            raise TypeError(f"blocks={blocks!r}, freeze={freeze!r}: expected several paths, not a string")
        frozen = names_under(self._statistics.names, freeze)
        if rule in ("all", "head_only", "blocks"):
            mask = self._by_name(rule, head, blocks)
        elif rule == "random":
            mask = ParameterMask.random(self._named, sizes["density"], k=sizes["k"], seed=seed, granularity=granularity)
        else:
            bias_score = self._score(criterion, "bias", source, eps)
            domain_score = None
            if rule != "top_k":
                domain_score = self._score(domain_criterion_of(criterion, domain_criterion), "domain", None, eps)
            mask = by_scores(rule, partial(self._ranking, granularity), bias_score, domain_score, sizes, within)
        if not frozen:
            return mask
        mask -= ParameterMask.from_names(self._named, frozen)
        if mask.nnz == 0:
            raise ValueError(f"rule {rule!r} selects nothing outside of freeze={listing(freeze)}")
        return mask

    def _by_name(self, rule: Rule, head: str | Sequence[str] | None, blocks: Sequence[str] | None) -> ParameterMask:
        """The mask of a rule that selects whole parameters, whatever their gradients."""
        names = self._statistics.names
        if rule == "all":
            return ParameterMask.full(self._named)
        if rule == "head_only":
            return ParameterMask.from_names(self._named, head_names(names, head))
        if not blocks:
            raise ValueError("rule 'blocks' needs blocks, paths of modules")
        return ParameterMask.from_names(self._named, names_under(names, blocks))

    def unit_scores(
        self,
        criterion: Criterion = "difference",
        *,
        contrast: str = "bias",
        source: str | None = None,
        granularity: Granularity = "tensor",
        eps: float = 1e-12,
    ) -> dict[str, Tensor]:
        """Parameter -> float32 scores of its units, as :meth:`select` ranks them at this granularity."""
        self._require_same(
            "unit_scores()", criterion=criterion, contrast=contrast, source=source, granularity=granularity, eps=eps
        )
        ranking = self._ranking(granularity, self._score(criterion, contrast, source, eps))
        return dict(zip(self._statistics.names, ranking.unit_scores(), strict=True))

    def _score(self, criterion: Criterion, contrast: str, source: str | None, eps: float) -> Score:
        if criterion in CONTRAST_CRITERIA:
            if source is not None:
                raise ValueError(f"criterion {criterion!r} compares two sources; source={source!r} is not valid for it")
            self._require_finite(self._statistics.contrasts.get(contrast, ()))
            return self._statistics.contrast_score(criterion, contrast, eps)
        if criterion not in SOURCE_CRITERIA:
            raise ValueError(f"criterion={criterion!r}: expected one of {', '.join(get_args(Criterion))}")
        sources = self._statistics.sources
        if source is None and len(sources) == 1:
            source = sources[0]
        if source not in sources:
            raise ValueError(f"criterion {criterion!r} needs source=, one of {', '.join(sources)}, found {source!r}")
        self._require_finite((source,))
        return self._statistics.source_score(criterion, source, eps)

    def _ranking(self, granularity: Granularity, score: Score) -> Ranking:
        return Ranking(self._statistics.names, shapes_of(self._parameters), granularity, self._holding, score)

    # -- reading ---------------------------------------------------------------------------------------

    def mean(self, source: str) -> dict[str, Tensor]:
        """Parameter -> mean gradient over the batches of a source, float32; of a DTensor, of the part held here."""
        self._require_source(source)
        return self._statistics.means("sum", source)

    def mean_square(self, source: str) -> dict[str, Tensor]:
        """Parameter -> mean squared gradient over the batches of a source (diagonal empirical Fisher), float32; of a
        DTensor, of the part held here."""
        self._require_source(source)
        return self._statistics.means("square", source)

    def square_norm(self, source: str) -> dict[str, float]:
        """Parameter -> squared gradient norm, summed over the batches of a source."""
        self._require_same("square_norm()", source=source)
        self._require_source(source)
        return dict(zip(self._statistics.names, self._statistics.square_norms(source), strict=True))

    def summary(self) -> SensitivitySummary:
        """Per source: batches, root-mean-square gradient norm of each tensor, non-finite values. Prints as a table."""
        self._require_same("summary()")
        statistics = self._statistics
        norms = {
            source: [(square / max(count, 1)) ** 0.5 for square in statistics.square_norms(source)]
            for source, count in statistics.batches.items()
        }
        nonfinite = {source: statistics.nonfinite(source) for source in statistics.sources}
        return SensitivitySummary(statistics.names, self.batches, norms, nonfinite)

    # -- disk ------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file atomically, from which accumulation can continue.

        With parameters of ``fully_shard`` every process saves its own part to its own file. On OSError an older file is
        kept.
        """
        storage.save(path, KIND, VERSION, self._statistics.tensors(), **self.metadata())

    def metadata(self) -> dict[str, Any]:
        """Of the file."""
        for source in self._statistics.sources:
            self._require_source(source)
        return {
            **self._statistics.config(),
            "batches": self.batches,
            "nonfinite_policy": self._nonfinite,
            "reduced": self._statistics.reduced,
            "place": self._holding.place,
        }

    def shards(self) -> tuple[dict[str, list[Tensor]], dict[str, Tensor]]:
        """For :mod:`aimfair.selective.whole_statistics`; a collective."""
        return self._statistics.shards()

    def restore(self, batches: Mapping[str, int], values: Mapping[str, Tensor]) -> None:
        """For :mod:`aimfair.selective.whole_statistics`."""
        self._statistics.restore(batches, values)

    @classmethod
    def load(cls, path: str | os.PathLike[str], parameters: Parameters) -> Self:
        """Loads statistics for the same model.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: one line naming the file: not a sensitivity file, damaged, or for another model or process.
        """
        probe: Self | None = None

        def destination(metadata: dict[str, Any]) -> dict[str, Tensor]:
            nonlocal probe
            try:
                probe = cls._restored(metadata, parameters)
            except (KeyError, TypeError, AttributeError) as error:
                raise ValueError(str(error)) from error
            return probe._statistics.tensors()

        storage.load_into(path, KIND, VERSION, destination)
        assert probe is not None
        try:
            probe.require_finite()
        except FloatingPointError as error:
            raise ValueError(f"{path}: {error}") from error
        return probe

    @classmethod
    def configured(cls, metadata: Mapping[str, Any], parameters: Parameters) -> Self:
        """A new probe with the configuration of :meth:`metadata`."""
        return cls(
            parameters,
            metadata["sources"],
            statistics=metadata["statistics"],
            batches=metadata["declared"],
            contrasts={name: tuple(pair) for name, pair in metadata["contrasts"].items()},
            nonfinite=metadata["nonfinite_policy"],
        )

    @classmethod
    def _restored(cls, metadata: dict[str, Any], parameters: Parameters) -> Self:
        """A probe with the configuration of a file, its accumulators still zero."""
        named = named_parameters(parameters)
        saved = {name: tuple(shape) for name, shape in zip(metadata["names"], metadata["shapes"], strict=True)}
        holding = holding_of(named)
        place, own_place = tuple(metadata.get("place", (0, 1))), holding.place
        if place != own_place:
            raise ValueError("the statistics are part {} of {}, this process holds {} of {}".format(*place, *own_place))
        own = dict(zip(named, holding.shapes, strict=True))
        if list(saved.items()) != list(own.items()):
            differing = sorted(name for name in saved.keys() | own.keys() if saved.get(name) != own.get(name))
            raise ValueError(f"the statistics are for another model: {listing(differing) or 'another order'}")
        probe = cls.configured(metadata, named)
        probe._statistics.batches = {source: int(metadata["batches"][source]) for source in probe._statistics.sources}
        probe._statistics.reduced = metadata.get("reduced", False)
        return probe
