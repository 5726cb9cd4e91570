"""Selective against full fine-tuning: metrics, time, and the memory of a fine-tuning step."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aimfair.ablation.options import Options, words
from aimfair.ablation.outcomes import METRICS, Findings, Outcomes, versus_reference
from aimfair.ablation.plan import ONLY_GROUP, Arm, Names, Parent, Plan, full_method, variant
from aimfair.base.device import tuning_device
from aimfair.base.errors import ConfigError
from aimfair.base.progress import duration
from aimfair.config import Config
from aimfair.data.images import ImageSet
from aimfair.generation.manifest import Manifest
from aimfair.methods import Tune
from aimfair.selective.mask import ParameterMask
from aimfair.training.execution import logits, prepare
from aimfair.training.feed import Normalize
from aimfair.training.loop import set_training_mode
from aimfair.training.models import load_model
from aimfair.training.optimizer import build_optimizer
from aimfair.training.settings import FinetuneSettings, ModelSettings

FULL = "full fine-tuning"

_STEPS = 2  # optimizer state exists after the first; the second has its peak
_FEW = 8  # images of a step whose peak is not measured


@dataclass(frozen=True)
class Request:
    methods: list[str]


def read(options: Options, config: Config) -> Request:
    """``--method``, or several in ``--values``."""
    options.only("selective", "method", "values")
    tuned = [name for name, method in config.methods.items() if isinstance(method, Tune)]
    methods = [options.method_of(config)[0]] if options.values is None else words("--values", options.values, tuned)
    if all(config.methods[name] == full_method(config) for name in methods):
        flag = "--method" if options.values is None else "--values"
        raise ConfigError(f"{flag}: {methods[0]!r} is full fine-tuning itself; name a method that selects")
    return Request(methods)


def plan(parent: Parent, request: Request) -> Plan:
    config, names = parent.config, Names(parent.config)
    full = names.add("full", full_method(config))
    arms = [Arm(name, names.add(name, config.methods[name])) for name in request.methods]
    arms = [arm for arm in arms if arm.method != full] + [Arm(FULL, full)]
    return Plan(
        title="Selective against full fine-tuning",
        question="The same biased models and images; the number of tuned weights differs, and with it the cost.",
        groups={ONLY_GROUP: variant(config, names.methods, full)},
        arms=arms,
        reference=FULL,
        notes=[
            "Time is wall-clock time of one fine-tuning, mean over the seeds, including the effect of other load on the"
            " machine.",
            "Memory is measured between two steps: weights, gradients, optimizer state and mask, without activations,"
            " which are the same where the first tuned tensor is in the first block.",
        ],
    )


def findings(parent: Parent, request: Request, outcomes: Outcomes) -> Findings:
    config, seed = parent.config, outcomes.results.seeds[0]
    run = parent.run.ablation("selective") / ONLY_GROUP
    size, fit = config.data.image_size, config.data.fit
    images = Manifest(run / "synthetic").load("balanced", size, fit, log=parent.run.log, interrupt=parent.run.interrupt)
    device = tuning_device(config.device)
    measured = {}
    for one in outcomes.arms:
        parent.run.interrupt.check()
        folder = run / "seeds" / str(seed)
        method = config.methods.get(one.arm.method)
        method = method if isinstance(method, Tune) else full_method(config)
        settings = method.training_settings(config.train, config.finetune)
        mask = folder / "masks" / f"{one.arm.method}.safetensors"
        measured[one.arm.label] = measure_memory(folder / "baseline", mask, images, settings, config.model, device)
    columns = {
        "time": {one.arm.label: duration(one.seconds) for one in outcomes.arms},
        "gradients": {label: _size(one.gradients) for label, one in measured.items()},
        "optimizer state": {label: _size(one.optimizer) for label, one in measured.items()},
        "total": {label: _size(one.total) for label, one in measured.items()},
    }
    if device.type == "cuda":
        columns["peak"] = {label: _size(one.peak or 0) for label, one in measured.items()}
    full = next(one for one in outcomes.arms if one.versus is None)
    sentences = versus_reference(outcomes, METRICS)
    for one in outcomes.arms:
        if one is not full:
            state, kept = (
                getattr(measured[one.arm.label], of) / max(getattr(measured[FULL], of), 1)
                for of in ("optimizer", "total")
            )
            sentences.append(
                f"{one.arm.label} keeps {100 * state:.0f}% of the optimizer state of full fine-tuning and"
                f" {100 * kept:.0f}% of the total memory between steps; its fine-tuning took"
                f" {duration(one.seconds)} against {duration(full.seconds)}."
            )
    data = {label: {**asdict(one), "total": one.total} for label, one in measured.items()}
    return Findings([], sentences, columns, data={"bytes": data, "device": device.type})


# -- memory ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Bytes.

    Attributes:
        weights, gradients, optimizer, mask: of the tensors that exist after a step.
        peak: maximum allocated during a step of a whole batch, including activations; None on the CPU.
    """

    weights: int
    gradients: int
    optimizer: int
    mask: int
    peak: int | None

    @property
    def total(self) -> int:
        """Between steps, without activations."""
        return self.weights + self.gradients + self.optimizer + self.mask


def measure_memory(
    baseline: Path,
    mask_file: Path,
    images: ImageSet,
    settings: FinetuneSettings,
    preprocessing: ModelSettings,
    device: torch.device,
) -> Memory:
    """Takes two steps with the first images of the balanced set, on a copy of the biased model.

    Args:
        baseline: folder of the biased model. mask_file: the mask of the method.
        device: if a GPU, the peak is measured too.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if on_gpu else 0
    model = load_model(baseline, preprocessing).to(device)
    prepare(model, preprocessing)
    mask = ParameterMask.load(mask_file, model)
    mask.freeze_unselected(model)
    optimizer = build_optimizer(model, settings, mask)
    set_training_mode(model, settings.batchnorm)
    count = min(settings.batch_size if on_gpu else _FEW, len(images))
    pixels = Normalize(preprocessing, device)(images.images[:count])
    target = torch.from_numpy(images.target[:count]).to(device)
    with optimizer.step_in_backward() if settings.step_in_backward else nullcontext():
        for _ in range(_STEPS):
            optimizer.zero_grad()
            F.cross_entropy(logits(model, pixels), target).backward()  # type: ignore[no-untyped-call]
            if not settings.step_in_backward:
                optimizer.step()
    peak = torch.cuda.max_memory_allocated(device) - before if on_gpu else None
    return memory_of(model, optimizer, mask, peak)


def memory_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, mask: ParameterMask | None, peak: int | None = None
) -> Memory:
    """Of what a step has left behind."""
    parameters = list(model.parameters())
    state = [value for one in optimizer.state.values() for value in one.values() if isinstance(value, Tensor)]
    return Memory(
        weights=_total_bytes(parameters),
        gradients=_total_bytes([parameter.grad for parameter in parameters if parameter.grad is not None]),
        optimizer=_total_bytes(state),
        mask=0 if mask is None else _total_bytes([mask.bits, mask.rank]),
        peak=peak,
    )


def _size(size: int) -> str:
    """Bytes with a decimal unit."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} B"


def _total_bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
