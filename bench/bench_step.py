"""The masked AdamW and SGD operators against torch's fused, foreach and exact masked ways."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench import floors, targets
from bench.harness import Case, Rival, Runner
from bench.shapes import MODELS
from bench.steps import (
    SGD,
    AdamW,
    Buffers,
    Optimizer,
    clone_fused_where,
    fused_on_masters,
    gather_fused_scatter,
)
from bench.workloads import (
    GRADIENT_SCALE,
    Pattern,
    Selection,
    TensorList,
    case_id,
    normal,
    positive,
    take,
    tensor_list,
    windows,
)

DENSITIES = (0.01, 0.05, 0.10, 0.30)
MASKS: list[tuple[Pattern, float]] = [
    *(("random", density) for density in DENSITIES),
    *(("rows", density) for density in DENSITIES),
    ("all", 1.0),
]
FEWER_MASKS = [mask for mask in MASKS if mask[0] != "rows" or mask[1] == 0.10]
"""For SGD and bfloat16."""

# Share of a value by which rounding may move it: fp32 arithmetic in another order, one rounding to bfloat16.
FP32_ROUNDING, NEAREST_ROUNDING, STOCHASTIC_ROUNDING = 1e-5, 2.0**-8, 2.0**-7


@dataclass(frozen=True)
class Mode:
    """How state and low-precision weights are kept."""

    name: str
    dtype: torch.dtype
    compact: bool
    masters: bool = False
    stochastic_rounding: bool = False

    @property
    def state(self) -> str:
        return "compact" if self.compact else "dense"

    @property
    def weight_rounding(self) -> float:
        if self.dtype == torch.float32:
            return FP32_ROUNDING
        return STOCHASTIC_ROUNDING if self.stochastic_rounding else NEAREST_ROUNDING


DENSE = Mode("fp32", torch.float32, compact=False)
COMPACT = Mode("fp32", torch.float32, compact=True)
MASTER = Mode("bf16 + master", torch.bfloat16, compact=True, masters=True)
STOCHASTIC = Mode("bf16 stochastic", torch.bfloat16, compact=False, stochastic_rounding=True)


@dataclass(frozen=True)
class Step:
    tensors: str
    optimizer: Optimizer
    mode: Mode
    pattern: Pattern
    density: float

    @property
    def id(self) -> str:
        mask = f"{self.density:.0%} {self.pattern}"
        return case_id(self.optimizer.name, self.mode.name, self.tensors, mask, self.mode.state)

    @property
    def quick(self) -> bool:
        usual = self.optimizer.name == "adamw" and self.mode.dtype == torch.float32
        return self.tensors == "ResNet-18" and (usual or (self.pattern, self.density) == ("random", 0.10))


def steps() -> Iterator[Step]:
    """Cases on the same tensors and mask stand together, so that these are made once."""
    adamw, sgd = AdamW(), SGD()
    for tensors in (*MODELS, "flat 1e8"):
        for mask in MASKS:
            for optimizer in (adamw, sgd) if mask in FEWER_MASKS else (adamw,):
                yield Step(tensors, optimizer, DENSE, *mask)
                yield Step(tensors, optimizer, COMPACT, *mask)
        for mask in FEWER_MASKS:
            yield Step(tensors, adamw, MASTER, *mask)
            yield Step(tensors, adamw, STOCHASTIC, *mask)


class Workload:
    """Parameters, gradients and dense states of one list, shared by every case on it, and the mask in use."""

    def __init__(self, tensors: TensorList, dtype: torch.dtype, device: torch.device):
        self.tensors = tensors
        self.dtype = dtype
        self.device = device
        self.params = normal(tensors.shapes, device, dtype=dtype)
        self.grads = normal(tensors.shapes, device, scale=GRADIENT_SCALE, dtype=dtype)
        self._states = [normal(tensors.shapes, device, scale=GRADIENT_SCALE), positive(tensors.shapes, device)]
        self._selection: Selection | None = None

    def selection(self, pattern: Pattern, density: float) -> Selection:
        if self._selection is None or (self._selection.pattern, self._selection.density) != (pattern, density):
            self._selection = None  # freed before the next one is made
            self._selection = Selection(self.tensors, pattern, density, self.device)
        return self._selection

    def dense(self, optimizer: Optimizer) -> Buffers:
        return Buffers(self.params, self.grads, self._states[: optimizer.state_count])

    def compact(self, optimizer: Optimizer, nnz: list[int]) -> Buffers:
        """With states for the selected elements alone."""
        shapes = [(count,) for count in nnz]
        states = [normal(shapes, self.device, scale=GRADIENT_SCALE), positive(shapes, self.device)]
        return Buffers(self.params, self.grads, states[: optimizer.state_count])

    def narrow(self, optimizer: Optimizer) -> Buffers:
        """With dense states in the dtype of the parameters, all that torch's fused operators take."""
        dense = self.dense(optimizer)
        return Buffers(self.params, self.grads, [[s.to(self.dtype) for s in state] for state in dense.states])


class Workloads:
    """Holds one workload at a time."""

    def __init__(self, device: torch.device, shrink: float):
        self._device = device
        self._shrink = shrink
        self._current: Workload | None = None

    def get(self, name: str, dtype: torch.dtype) -> Workload:
        if self._current is None or (self._current.tensors.name, self._current.dtype) != (name, dtype):
            self._current = None  # freed before the next one is made
            self._current = Workload(tensor_list(name, self._shrink), dtype, self._device)
        return self._current


@pytest.fixture(scope="module")
def workloads(device: torch.device, shrink: float) -> Workloads:
    return Workloads(device, shrink)


@pytest.mark.parametrize(
    "step", [pytest.param(step, id=step.id, marks=[pytest.mark.quick] * step.quick) for step in steps()]
)
def test_step(step: Step, workloads: Workloads, runner: Runner, benchmark: BenchmarkFixture) -> None:
    optimizer, mode = step.optimizer, step.mode
    workload = workloads.get(step.tensors, mode.dtype)
    selection = workload.selection(step.pattern, step.density)
    buffers = workload.compact(optimizer, selection.nnz) if mode.compact else workload.dense(optimizer)
    masters = None
    if mode.masters:
        units = zip(selection.units(buffers.params), selection.indices, strict=True)
        masters = [param.index_select(0, index).float().view(-1) for param, index in units]
    case = Case(
        work=f"{optimizer.name} {mode.name}",
        tensors=step.tensors,
        numel=workload.tensors.numel,
        density=step.density,
        pattern=step.pattern,
        state=mode.state,
        floor_bytes=floors.step_bytes(
            workload.tensors.numel,
            selection.bits,
            sum(selection.nnz),
            mode.dtype.itemsize,
            dense_states=0 if mode.compact else optimizer.state_count,
            compact_states=(optimizer.state_count if mode.compact else 0) + mode.masters,
        ),
        ours=optimizer.ours(
            buffers,
            selection,
            compact=mode.compact,
            masters=masters,
            stochastic_rounding=mode.stochastic_rounding,
        ),
        check=check_step(step, buffers, masters, selection),
        rivals=unmasked_rivals(step, workload) + masked_rivals(step, workload, buffers, masters, selection),
    )
    runner.run(case, benchmark)


def unmasked_rivals(step: Step, workload: Workload) -> list[Rival]:
    """Ways that do not depend on the mask; the slow one runs beside the mask of ones only."""
    optimizer, mode = step.optimizer, step.mode
    if mode.dtype == torch.float32:
        rivals = [Rival("fused", optimizer.fused(workload.dense(optimizer)))]
        if step.pattern == "all":
            call = optimizer.foreach(workload.dense(optimizer))
            rivals.append(Rival("foreach", call, capturable=False))  # it counts its steps on the CPU
        return rivals
    rivals = [Rival("fused, bf16 state", optimizer.fused(workload.narrow(optimizer)))]
    if mode.masters:
        every_master = [param.float() for param in workload.params]
        call = fused_on_masters(optimizer, workload.dense(optimizer), every_master)
        rivals.append(Rival("fused on fp32 masters", call))
    return rivals


def masked_rivals(
    step: Step, workload: Workload, buffers: Buffers, masters: list[Tensor] | None, selection: Selection
) -> list[Rival]:
    rivals: list[Rival] = []
    if step.pattern == "all":
        return rivals
    if step.mode.compact:
        call = gather_fused_scatter(step.optimizer, buffers, selection, masters)
        rivals.append(Rival("gather + fused + scatter", call, masked=True))
    if step.mode.dtype == torch.float32 and (not step.mode.compact or step.density == 0.10):
        call = clone_fused_where(step.optimizer, workload.dense(step.optimizer), selection.bools)
        rivals.append(Rival(targets.CLONE_FUSED_WHERE, call, masked=True))
    return rivals


def check_step(step: Step, buffers: Buffers, masters: list[Tensor] | None, selection: Selection) -> Callable[[], None]:
    """Copies windows of the buffers; the result compares what one step left there with torch's fused step in fp32."""
    compact = step.mode.compact
    found = windows([param.numel() for param in buffers.params], selection)
    bools = take(selection.bools, found)
    before = take(buffers.params, found)
    states = [take(state, found, compact=compact) for state in buffers.states]
    if compact:
        states = [
            [torch.zeros(b.shape, device=b.device).masked_scatter_(b, s) for b, s in zip(bools, state, strict=True)]
            for state in states
        ]
    expected = Buffers(
        [p.to(torch.float32, copy=True) for p in before], [g.float() for g in take(buffers.grads, found)], states
    )
    oracle = step.optimizer.fused(expected)

    def close(what: str, actual: Tensor, wanted: Tensor, rounding: float = FP32_ROUNDING) -> None:
        torch.testing.assert_close(actual.float(), wanted, rtol=rounding, atol=1e-7, msg=lambda text: f"{what}: {text}")

    def check() -> None:
        oracle()
        after = take(buffers.params, found)
        states_after = [take(state, found, compact=compact) for state in buffers.states]
        masters_after = take(masters, found, compact=True) if masters else []
        for w, selected in enumerate(bools):
            assert torch.equal(after[w][~selected], before[w][~selected]), "unselected weights moved"
            weights = expected.params[w][selected]
            close("weights", after[w][selected], weights, step.mode.weight_rounding)
            if masters:
                close("masters", masters_after[w], weights)
            for s, state in enumerate(states_after):
                actual = state[w] if compact else state[w][selected]
                close(f"state {s}", actual, expected.states[s][w][selected])

    return check
