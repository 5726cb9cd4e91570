"""Selective against full fine-tuning: what it is worth, how long it takes and what it keeps in memory."""

from dataclasses import asdict, dataclass

from aimfair.ablation import memory, sweep
from aimfair.ablation.findings import Findings
from aimfair.ablation.options import Options, words
from aimfair.ablation.outcomes import Outcomes
from aimfair.ablation.plan import ONLY_GROUP, Arm, Names, Parent, Plan, full_method, variant
from aimfair.base.device import tuning_device
from aimfair.base.errors import ConfigError
from aimfair.base.progress import duration
from aimfair.config import Config
from aimfair.generation.manifest import Manifest
from aimfair.methods import Tune

FULL = "full fine-tuning"


@dataclass(frozen=True)
class Request:
    methods: list[str]


def read(options: Options, config: Config) -> Request:
    """``--method``, or ``--values``: several."""
    options.only("selective", "method", "values")
    tuned = [name for name, method in config.methods.items() if isinstance(method, Tune)]
    methods = [options.method_of(config)] if options.values is None else words("--values", options.values, tuned)
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
        question="The same biased models and images; how many weights are tuned differs, and what that costs.",
        groups={ONLY_GROUP: variant(config, names.methods, full)},
        arms=arms,
        reference=FULL,
        notes=[
            "Time is that of one fine-tuning, mean over the seeds, as it was when it ran; what else the machine did is"
            " in it.",
            "Memory is that of weights, gradients, optimizer state and mask between two steps, measured; without"
            " activations, which are the same where the first tuned tensor is in the first block.",
        ],
    )


def findings(parent: Parent, request: Request, outcomes: Outcomes) -> Findings:
    config, seed = parent.config, outcomes.results.seeds[0]
    run = parent.run.ablation("selective") / ONLY_GROUP
    size, fit = config.data.image_size, config.data.fit
    images = Manifest(run / "synthetic").load("balanced", size, fit, interrupt=parent.run.interrupt)
    device = tuning_device(config.device)
    measured = {}
    for one in outcomes.arms:
        parent.run.interrupt.check()
        folder = run / "seeds" / str(seed)
        method = parent.config.methods.get(one.arm.method)
        method = method if isinstance(method, Tune) else full_method(config)
        settings = method.training_settings(config.train, config.finetune)
        mask = folder / "masks" / f"{one.arm.method}.safetensors"
        measured[one.arm.label] = memory.measure(folder / "baseline", mask, images, settings, config.model, device)
    columns = {
        "time": {one.arm.label: duration(one.seconds) for one in outcomes.arms},
        "gradients": {label: memory.text(one.gradients) for label, one in measured.items()},
        "optimizer state": {label: memory.text(one.optimizer) for label, one in measured.items()},
        "kept in all": {label: memory.text(one.total) for label, one in measured.items()},
    }
    if device.type == "cuda":
        columns["peak"] = {label: memory.text(one.peak or 0) for label, one in measured.items()}
    full = next(one for one in outcomes.arms if one.versus is None)
    sentences = sweep.beside_reference(outcomes, sweep.METRICS)
    for one in outcomes.arms:
        if one is not full:
            state, kept = (
                getattr(measured[one.arm.label], of) / max(getattr(measured[FULL], of), 1)
                for of in ("optimizer", "total")
            )
            sentences.append(
                f"{one.arm.label} keeps {100 * state:.0f}% of the optimizer state of full fine-tuning and"
                f" {100 * kept:.0f}% of all that is kept between steps; its fine-tuning took"
                f" {duration(one.seconds)} against {duration(full.seconds)}."
            )
    data = {label: {**asdict(one), "total": one.total} for label, one in measured.items()}
    return Findings([], sentences, columns, data={"bytes": data, "device": device.type})
