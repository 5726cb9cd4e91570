"""Selects the mask of each seed and tuning method."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from torch import nn

from aimfair.base.errors import AimfairError
from aimfair.base.progress import Task
from aimfair.methods import Tune
from aimfair.methods.tune import select_mask
from aimfair.run.directory import Run
from aimfair.selective.mask import ParameterMask
from aimfair.selective.sensitivity import Sensitivity
from aimfair.training.head import head_names
from aimfair.training.models import load_model


def run(run: Run) -> None:
    tuned = run.tuned_config().methods
    todo: dict[int, list[tuple[str, Tune, object]]] = {
        seed: [
            (name, method, inputs)
            for name, method in tuned.items()
            if isinstance(method, Tune)
            and not run.is_done(f"select/{seed}/{name}", inputs := _inputs(run, seed, method))
        ]
        for seed in run.config.seeds
    }
    if not any(todo.values()):
        return
    with run.progress.task("select", sum(map(len, todo.values()))) as task:
        for seed, methods in todo.items():
            if methods:
                _select(run, seed, methods, task)
                gc.collect()  # models can have reference cycles


def _select(run: Run, seed: int, methods: Sequence[tuple[str, Tune, object]], task: Task) -> None:
    """The masks of one seed: in a function, so that its statistics, several times the size of the model, are freed
    before those of the next are read."""
    model = load_model(run.baseline(seed), run.config.model)
    sensitivity = _load(run, seed, model)
    for name, method, inputs in methods:
        head = partial(head_names, model, run.config.data.image_size, f"methods.{name}")
        mask = select_mask(sensitivity, name, method, seed, head=head)
        path = run.mask(seed, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        mask.save(path)
        run.log("mask", seed=seed, method=name, selected=mask.nnz, density=mask.density)
        run.finish(f"select/{seed}/{name}", inputs, [path])
        task.advance(note=name)
        run.interrupt.check()


def _inputs(run: Run, seed: int, method: Tune) -> dict[str, object]:
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


def _load(run: Run, seed: int, model: nn.Module) -> Sensitivity:
    path = run.sensitivity(seed)
    with _made_by("sensitivity", run, path):
        return Sensitivity.load(path, model)


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
