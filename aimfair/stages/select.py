"""Selects the mask of each seed and tuning method."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn

from aimfair.base.device import tuning_device
from aimfair.base.errors import AimfairError
from aimfair.methods import Tune
from aimfair.methods.tune import select_mask
from aimfair.run.directory import Run
from aimfair.run.steps import Assignment, Outputs, Step, in_one_task
from aimfair.selective.mask import ParameterMask
from aimfair.selective.sensitivity import Sensitivity
from aimfair.selective.whole_statistics import load_shards
from aimfair.stages.context import processes_of, trained_model
from aimfair.training.head import head_names
from aimfair.training.models import load_model


def run(run: Run) -> None:
    in_one_task(run, "select", steps(run))


def steps(run: Run) -> list[Step]:
    """One for each seed: its statistics, several times the size of the model, are read once for all methods."""
    chosen = [f"tune/chosen/{name}" for name in run.config.tuned if isinstance(run.config.methods[name], Tune)]
    return [
        Step(f"select/{seed}", (f"sensitivity/{seed}", *chosen), partial(_assign, run, seed), uses_device=False)
        for seed in run.config.seeds
    ]


def _assign(run: Run, seed: int) -> Assignment | None:
    inputs, methods = dict[str, object](), dict[str, Tune]()
    for name in run.config.methods:
        method = run.tuned_method(name)
        if isinstance(method, Tune):
            step, of = f"select/{seed}/{name}", inputs_of(run, seed, method)
            if not run.is_done(step, of):
                inputs[step], methods[name] = of, method
    return Assignment(inputs, partial(_select, seed=seed, methods=methods)) if methods else None


def _select(run: Run, *, seed: int, methods: Mapping[str, Tune]) -> Outputs:
    sharded = processes_of(run).sharded
    device = tuning_device(run.config.device, run.ranks) if sharded else torch.device("cpu")
    model = trained_model(run, run.baseline(seed), device)
    sensitivity = _load(run, seed, model, load_shards if sharded else Sensitivity.load)
    outputs = {}
    for name, method in methods.items():
        head = partial(head_names, model, run.config.data.image_size, f"methods.{name}")
        mask = select_mask(sensitivity, name, method, seed, head=head)
        path = run.mask(seed, name)
        if run.ranks.leads:
            path.parent.mkdir(parents=True, exist_ok=True)
            mask.save(path)
        run.log("mask", seed=seed, method=name, selected=mask.nnz, density=mask.density)
        outputs[f"select/{seed}/{name}"] = [path]
        run.interrupt.check()
    return outputs


def inputs_of(run: Run, seed: int, method: Tune) -> dict[str, object]:
    """What the mask of a method depends on."""
    return {"method": method.selection, "seed": seed, "upstream": run.digest_of(f"sensitivity/{seed}")}


def mask_of(run: Run, seed: int, method: str, model: nn.Module | None = None) -> ParameterMask:
    """The mask of one seed and method, checked against ``model`` if one is given.

    Raises:
        AimfairError: the file is missing, damaged or for another model.
    """
    path = run.mask(seed, method)
    with _made_by("select", run, path):
        return ParameterMask.load(path, model)


def sensitivity_of(run: Run, seed: int) -> Sensitivity:
    """The statistics of one seed that the stage sensitivity made, on the CPU.

    Raises:
        AimfairError: the file is missing, damaged or for another model.
    """
    return _load(run, seed, load_model(run.baseline(seed), run.config.model))


def _load(
    run: Run, seed: int, model: nn.Module, load: Callable[[Path, nn.Module], Sensitivity] = Sensitivity.load
) -> Sensitivity:
    path = run.sensitivity(seed)
    with _made_by("sensitivity", run, path):
        return load(path, model)


@contextmanager
def _made_by(stage: str, run: Run, path: Path) -> Iterator[None]:
    """Around the reading of a file of a stage: its errors say how to make it again."""
    again = f"do: aimfair {stage} --run {run.path}"
    try:
        yield
    except FileNotFoundError as error:
        raise AimfairError(f"{path}: no such file; {again}") from error
    except ValueError as error:
        raise AimfairError(f"{error}; remove it and {again}") from error
