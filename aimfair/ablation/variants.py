"""The runs of an ablation: opening, running, and removing those that no arm needs any more."""

import contextlib
import io
import shutil
from collections.abc import Collection, Mapping, Sequence

from aimfair.ablation.plan import ONLY_GROUP, Parent, variant
from aimfair.base.errors import AimfairError, prefixed
from aimfair.cluster.pool import Pool
from aimfair.config import Config
from aimfair.config import load as config_file
from aimfair.run.directory import Run
from aimfair.run.schedule import side_by_side
from aimfair.stages.context import preparation
from aimfair.stages.pipeline import STEPS, run_stages

SHARED = ("prompts", "generate", "train", "sensitivity")
"""Stages that every ablation builds on."""


def finish(parent: Parent, group: str, settings: Config, stages: Sequence[str], note: str) -> Run:
    """Runs these stages of a variant, without printing their tables: that of the ablation covers all variants.

    Returns:
        The run, closed again, for its paths.

    Raises:
        AimfairError: it has other settings and ``parent.overwrite`` is not set, or as the stages.
    """
    with _opened(parent, group, settings) as run:
        run.pool = parent.run.pool
        run.log.tell(f"{parent.folder.name}: {group}, {note}")
        with contextlib.redirect_stdout(io.StringIO()):
            run_stages(run, stages)
    return run


def finish_all(parent: Parent, groups: Mapping[str, Config], stages: Sequence[str]) -> None:
    """Runs these stages of all variants: one after another, or with a pool their independent steps side by side.

    The decoded images of the last one are kept, or those of all with a pool: see :func:`forget_decoded`.

    Raises:
        AimfairError, Interrupted: as :func:`finish`.
    """
    if parent.run.pool is not None:
        _finish_together(parent, groups, stages, parent.run.pool)
        return
    before: str | None = None
    for number, (group, settings) in enumerate(groups.items(), 1):
        parent.run.interrupt.check()
        if before is not None:
            forget_decoded(parent, [before])
        with prefixed(group) if len(groups) > 1 else contextlib.nullcontext():
            finish(parent, group, settings, stages, f"run {number} of {len(groups)}")
        before = group


def _finish_together(parent: Parent, groups: Mapping[str, Config], stages: Sequence[str], pool: Pool) -> None:
    with contextlib.ExitStack() as stack:
        runs = []
        for group, settings in groups.items():
            runs.append(_opened(parent, group, settings))
            stack.callback(runs[-1].close)
            runs[-1].interrupt = parent.run.interrupt
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        for number, run in enumerate(runs, 1):
            run.log.tell(f"{parent.folder.name}: {run.path.name}, run {number} of {len(runs)}: images")
            run.pool = pool
            with prefixed(run.path.name):
                run_stages(run, [stage for stage in stages if stage not in STEPS])
            run.pool = None
        steps = {run: [step for stage in stages if stage in STEPS for step in STEPS[stage](run)] for run in runs}
        side_by_side(pool, parent.run, steps, parent.folder.name, preparation(pool.threads))
        for run in runs:  # what is not done in steps
            run_stages(run, [stage for stage in stages if stage in STEPS])


def _opened(parent: Parent, group: str, settings: Config) -> Run:
    overwrite = _may_replace(parent, group, settings)
    return Run.open(parent.folder / group, settings, overwrite=overwrite, quiet=parent.quiet)


def with_gradients(parent: Parent) -> Run:
    """The run ``ONLY_GROUP`` with biased models and sensitivity under the flags, before its arms are known.

    Without flags that change them they are those of the parent. Existing methods of the run are kept.

    Raises:
        AimfairError: as :func:`finish`.
    """
    made = _settings_of(parent, ONLY_GROUP)
    of = parent.config if made is None else made
    return finish(
        parent, ONLY_GROUP, variant(parent.config, of.methods, of.default_method), SHARED, "biased models and gradients"
    )


def remove_others(parent: Parent, groups: Collection[str]) -> None:
    """Removes runs of an earlier ablation of this name that have no arm in this one, if ``parent.overwrite`` is set.

    Raises:
        AimfairError: it is not set, and one of them has models.
    """
    for config in sorted(parent.folder.glob("*/config.yaml")):
        path = config.parent
        if path.name in groups or path.is_symlink():
            continue
        if parent.overwrite:
            run = Run.open(path, parent.config, overwrite=True, quiet=True)  # locks it
            shutil.rmtree(path)
            run.close()
        elif _has_models(parent, path.name):
            raise AimfairError(
                f"{path}: of an ablation with other arms; replace it with --overwrite (common work is kept)"
            )


def forget_decoded(parent: Parent, groups: Collection[str]) -> None:
    """Removes the decoded images of finished variants, as large as the parent's; they are decoded again on use."""
    for group in groups:
        path = parent.folder / group
        decoded, config = path / "synthetic" / "decoded", Run.config_of(path)
        if decoded.exists() and config is not None:
            lock = Run.open(path, config, quiet=True)
            shutil.rmtree(decoded)
            lock.close()


def _may_replace(parent: Parent, group: str, settings: Config) -> bool:
    """Whether the run of a group may take these settings: with ``overwrite``, or if no work is lost.

    None is lost if only the methods differ and none was fine-tuned, as after a request whose masks could not be
    selected.

    Raises:
        AimfairError: it has other settings, and finished work.
    """
    old = None if parent.overwrite else _settings_of(parent, group)
    if old is not None:
        old = old.model_copy(update={"cluster": settings.cluster})  # no result depends on that
    if old is None or old == settings:
        return parent.overwrite
    if not any((parent.folder / group / "stages").rglob("*.json")):
        return False  # an empty run takes any settings
    if variant(settings, old.methods, old.default_method) == old and not _has_models(parent, group):
        return True
    changes = "; ".join(config_file.differences(old, settings))
    raise AimfairError(
        f"{parent.folder / group}: this ablation was made with other settings: {changes}. Replace them with"
        " --overwrite (common work is kept)"
    )


def _settings_of(parent: Parent, group: str) -> Config | None:
    """Of the run of a group; None if there is none, or with ``parent.overwrite`` none that can be read."""
    try:
        return Run.config_of(parent.folder / group)
    except AimfairError:
        if parent.overwrite:
            return None
        raise


def _has_models(parent: Parent, group: str) -> bool:
    return any((parent.folder / group / "stages" / "finetune").rglob("*.json"))
