"""Runs an ablation: plans the arms, runs those that are missing, and writes the results.

Everything is in ``<run>/ablations/<name>``: a run for each group of arms that share everything before selection, and
``table.csv``, ``table.md``, ``<name>.json`` and ``ablation.html``.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from aimfair.ablation import registry, report, variants
from aimfair.ablation.options import Options
from aimfair.ablation.outcomes import collect
from aimfair.ablation.plan import Parent
from aimfair.base.errors import AimfairError, ConfigError
from aimfair.base.files import is_temporary
from aimfair.cluster.pool import Pool
from aimfair.config import Config
from aimfair.run.directory import Run
from aimfair.stages.context import prepare_process, splits_of
from aimfair.stages.pipeline import STAGES, run_stages
from aimfair.tuning.settings import TuneSettings

_OF_SEEDS = {"train", "sensitivity"}


def ablate(
    name: str,
    directory: Path,
    options: Options,
    overrides: Mapping[str, str],
    *,
    overwrite: bool,
    quiet: bool,
    pool: Callable[[Run], AbstractContextManager[Pool | None]] = lambda _: nullcontext(),
) -> Path:
    """Runs an ablation of the run in ``directory``; returns the path of its page.

    Prompts, images, biased models and sensitivity that the run lacks are made first, in the run itself and with its own
    settings; otherwise the run is only read. It stays locked until the end.

    Args:
        name: in :data:`aimfair.ablation.registry.ABLATIONS`.
        overrides: settings of the variants, instead of those of the run.
        overwrite: an ablation of other values may be replaced; work common to both is kept.
        pool: gives the processes that do independent steps.

    Raises:
        ConfigError: there is no run, or a value that cannot be used.
        AimfairError: as the stages.
        Interrupted: SIGINT or SIGTERM came; the same command continues.
    """
    own, config = Run.config_of(directory), Run.config_of(directory, dict(overrides))
    if own is None or config is None:
        raise ConfigError(
            f"{directory}: there is no run yet; begin one with: aimfair run --config FILE --run {directory}"
        )
    ablation = registry.load(name)
    request = ablation.read(options, config)
    with Run.open(directory, own, quiet=quiet) as run, pool(run) as run.pool:
        _finish_shared(run)
        if own.tuned:
            config = _as_tuned(run, config)
            request = ablation.read(options, config)
        prepare_process(config)
        folder = run.ablation(name)
        _remove_stray(folder)
        parent = Parent(run, config, frozenset(overrides), folder, overwrite, quiet)
        plan = ablation.plan(parent, request)
        variants.remove_others(parent, plan.groups)
        variants.finish_all(parent, plan.groups, [stage for stage in STAGES if stage != "report"])
        outcomes = collect(plan, folder, _clusters(run))
        found = ablation.findings(parent, request, outcomes)
        variants.forget_decoded(parent, plan.groups)
        report.write(folder, name, plan, outcomes, found)
    report.show(plan, outcomes, found)
    return folder / report.PAGE


def _as_tuned(run: Run, config: Config) -> Config:
    """``config`` with the settings that tuning chose for methods of the run, unless flags change those; its variants
    tune nothing.

    Raises:
        AimfairError: the tuning is not finished.
    """
    tuned, own = run.tuned_config().methods, run.config.methods
    methods = {name: tuned[name] if method == own.get(name) else method for name, method in config.methods.items()}
    return config.model_copy(update={"methods": methods, "tune": TuneSettings()})


def _clusters(run: Run) -> dict[str, str]:
    """Id -> cluster of the test images, if they are clustered by data.group_column."""
    if run.config.data.group_column is None:
        return {}
    test = splits_of(run).test
    return dict(zip(test.ids, test.clusters, strict=True))


def _remove_stray(folder: Path) -> None:
    """Removes temporary files that a killed ablation left; opening the run does not look into its ablations."""
    for path in folder.glob(".*.tmp"):
        if is_temporary(path.name):
            path.unlink()


def _finish_shared(run: Run) -> None:
    """Runs the unfinished stages among the shared ones; touches nothing if all are finished."""
    missing = [
        stage
        for stage in variants.SHARED
        if not (stage == "prompts" and not run.config.generate.in_use)  # imported and drawn images have none
        and not all(_is_finished(run, step) for step in _steps(stage, run.config.seeds))
    ]
    if missing:
        run.log.tell(f"this run is not finished: first its {', '.join(missing)}")
        run_stages(run, missing)


def _steps(stage: str, seeds: list[int]) -> list[str]:
    return [f"{stage}/{seed}" for seed in seeds] if stage in _OF_SEEDS else [stage]


def _is_finished(run: Run, step: str) -> bool:
    try:
        run.digest_of(step)
    except AimfairError:
        return False
    return True
