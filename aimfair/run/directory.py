"""A run directory: its lock, settings, log and records, and the paths of what the stages make."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from aimfair.base.errors import AimfairError, ConfigError
from aimfair.base.files import is_temporary, remove_temporaries, write_text
from aimfair.base.interrupt import Interrupt
from aimfair.base.lock import Lock, holder, try_lock
from aimfair.base.log import Log
from aimfair.base.progress import Progress
from aimfair.base.ranks import ALONE, Ranks
from aimfair.cluster.pool import Pool
from aimfair.config import Config
from aimfair.config import load as config_file
from aimfair.methods import BIASED, AnyMethod
from aimfair.run.records import Records, digest_of_inputs
from aimfair.tuning.space import with_values
from aimfair.tuning.trials import Choice

_LOCK, _CONFIG = ".lock", "config.yaml"
_RESTORE = "; restore the file, or give the settings of the run again with --config FILE --overwrite"

_OF_NO_RESULT = {"cluster", "run"}
"""Settings that may change at any time."""

ABLATIONS = "ablations"
"""The folder in a run with its variants, ``ablations/<name>/<group>``, each a run itself."""


class Run:
    """An open run directory, which no other process can open until this one closes it.

    While entered as a context, SIGINT and SIGTERM raise :attr:`interrupt` instead of ending the process.

    Attributes:
        path: the directory.
        config: its settings.
        overwrite: whether results of other settings may be replaced.
        log, progress, interrupt: for the functions that stages call.
        ranks: the processes that do the stages together. Process 0 holds the lock, and alone writes to the directory;
            the others follow what it decides: every process calls the methods on records in the same order.
        pool: other processes that do its steps; None: this one does.
        origin: the run that this one is a variant of, recognised by its path; None: it is no variant. Steps that the
            origin has finished with the same inputs are taken over.

    Files: ``config.yaml templates.jsonl prompts.jsonl diversity.json synthetic/ generation.json tuning/
    seeds/<seed>/{baseline/, sensitivity.safetensors, masks/<method>.safetensors, finetuned/<method>/} results.json
    flips.json report.html log.jsonl stages/ ablations/``; templates.jsonl only where a language model writes the
    prompts, flips.json only with held-out pairs.
    """

    def __init__(
        self,
        path: Path,
        config: Config,
        lock: Lock | None,
        log: Log,
        progress: Progress,
        *,
        overwrite: bool,
        ranks: Ranks = ALONE,
    ):
        self.path, self.config, self.overwrite, self.ranks = path, config, overwrite, ranks
        self._lock = lock
        self._records = Records(path)
        self.origin = _origin(path)
        self.log, self.progress = log, progress
        self.interrupt = Interrupt() if ranks.size == 1 else ranks.interrupt
        self.pool: Pool | None = None

    @classmethod
    def open(
        cls, path: Path, config: Config, *, overwrite: bool = False, quiet: bool = False, ranks: Ranks = ALONE
    ) -> Self:
        """Opens a directory, made if absent, for a run with these settings.

        A run with the same settings continues. One with other settings is refused, or takes the new ones with
        ``overwrite``; steps whose inputs stay the same are not repeated.

        Raises:
            AimfairError: another process has it open, it holds something that is no run, or other settings; or the
                processes of ``ranks`` have different settings.
        """
        if not ranks.leads:
            _require_same_settings(ranks, config)
            silent = Log(None, show=lambda _: None)
            return cls(path, config, None, silent, Progress(quiet=True), overwrite=overwrite, ranks=ranks)
        path.mkdir(parents=True, exist_ok=True)
        _require_run_or_empty(path)
        lock = try_lock(path / _LOCK, waiting=Progress(quiet=quiet).say)
        if lock is None:
            raise AimfairError(
                f"{path}: process {holder(path / _LOCK)} is working in this run; wait for it, or choose another"
                " directory with --run"
            )
        try:
            config = _settle_config(path, config, overwrite=overwrite)
            remove_temporaries(path, but=ABLATIONS)  # variants have locks of their own
            _require_same_settings(ranks, config)
            progress = Progress(quiet=quiet)
            log = Log(path / "log.jsonl", show=progress.say, notes=not quiet)
            return cls(path, config, lock, log, progress, overwrite=overwrite, ranks=ranks)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def attach(cls, path: Path, config: Config, log: Log, progress: Progress) -> Self:
        """A directory that another process has open, to do a step for it; that one keeps the records."""
        return cls(path, config, None, log, progress, overwrite=False)

    @staticmethod
    def config_of(path: Path, overrides: dict[str, str] | None = None) -> Config | None:
        """The settings of an existing run, under ``overrides`` as in ``config_file.load``; None if there is no run.

        Raises:
            ConfigError: a setting cannot be used; those of the run itself also say how to continue.
        """
        return _load_own(path / _CONFIG, overrides) if (path / _CONFIG).exists() else None

    def __enter__(self) -> Self:
        self.interrupt.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.interrupt.__exit__(*exception)
        self.close()

    def close(self) -> None:
        """Releases the lock."""
        self.log.close()
        if self._lock is not None:
            self._lock.release()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Inside, process 0 works alone, as if there were no others."""
        ranks, self.ranks = self.ranks, ALONE
        try:
            yield
        finally:
            self.ranks = ranks

    @property
    def settings_digest(self) -> str:
        """Of all settings that results depend on."""
        return digest_of_inputs(self.config.model_dump(mode="json", exclude=_OF_NO_RESULT))

    # -- records -----------------------------------------------------------------------------------------------------

    def is_done(self, step: str, inputs: object, *, content: bool = False) -> bool:
        """Whether the step was finished with these inputs and its outputs are still there.

        If not, the caller does the step, which may be half done already.

        Args:
            step: "prompts", "generate", "train/<seed>", "sensitivity/<seed>", "tune/sensitivity/<seed>",
                "tune/trials/<method>/<number>", "tune/chosen/<method>", "select/<seed>/<method>",
                "finetune/<seed>/<method>", "evaluate/<seed>/<method>", "evaluate", "flips/<seed>/<method>",
                "flips" or "report".
            inputs: everything the result depends on, of what JSON, pydantic or Path can hold: settings, and
                under "upstream", :meth:`digest_of` each step whose results are read.
            content: the outputs must have their bytes, not only their sizes; for small ones that users may edit.
        """
        if self.ranks.size > 1:
            self.ranks.require_same(
                {f"what the step {step} depends on": digest_of_inputs(inputs)}, "all need the same files"
            )
            return bool(json.loads(self.ranks.of_first(lambda: json.dumps(self._is_done(step, inputs, content)))))
        return self._is_done(step, inputs, content)

    def _is_done(self, step: str, inputs: object, content: bool) -> bool:
        if self._records.matches(step, inputs, content=content):
            return True
        if self.origin is not None and self._records.adopt(step, inputs, Records(self.origin)):
            self.log("step taken over", step=step, origin=self.origin)
            return True
        return False

    def has_record(self, step: str) -> bool:
        """Whether the step was finished, with any inputs."""
        return bool(json.loads(self.ranks.of_first(lambda: json.dumps(self._records.exists(step)))))

    def finish(self, step: str, inputs: object, outputs: Sequence[Path]) -> None:
        """Records that the step made ``outputs``, files or folders; the last action of a step."""
        if self.ranks.leads:
            self._records.write(step, inputs, outputs)
            self.log("step finished", step=step)
        self.ranks.meet()

    def digest_of(self, step: str, *, content: bool = False, inputs: object = None) -> str:
        """Digest of the inputs and all output bytes of a finished step.

        Args:
            content: as in :meth:`is_done`.
            inputs: those that it must have had; None: any.

        Raises:
            AimfairError: it is not finished, or out of date.
        """
        return self.ranks.of_first(lambda: self._records.digest(step, content=content, inputs=inputs))

    # -- tuning ------------------------------------------------------------------------------------------------------

    def tuned_config(self) -> Config:
        """The settings, those of methods as tuning chose them.

        Raises:
            AimfairError: the tuning is not finished, or out of date.
        """
        methods = {name: self.tuned_method(name) for name in self.config.methods}
        return self.config.model_copy(update={"methods": methods})

    def tuned_method(self, name: str) -> AnyMethod:
        """The settings of one method; see :meth:`tuned_config`."""
        method = self.config.methods[name]
        if name not in self.config.tuned:
            return method
        self.digest_of(f"tune/chosen/{name}")
        return with_values(method, Choice.load(self.chosen(name)).values)

    # -- paths -------------------------------------------------------------------------------------------------------

    @property
    def prompts(self) -> Path:
        return self.path / "prompts.jsonl"

    @property
    def templates(self) -> Path:
        """Prompt templates that a language model has written so far."""
        return self.path / "templates.jsonl"

    @property
    def diversity(self) -> Path:
        """Diversity of the prompts."""
        return self.path / "diversity.json"

    @property
    def synthetic(self) -> Path:
        return self.path / "synthetic"

    def trial(self, method: str, number: int) -> Path:
        """Record of a trial of a method's settings."""
        return self.path / "tuning" / "trials" / method / f"{number}.json"

    def chosen(self, method: str) -> Path:
        """The settings that tuning chose for a method."""
        return self.path / "tuning" / "chosen" / f"{method}.json"

    def tuning_sensitivity(self, seed: int) -> Path:
        """As :meth:`sensitivity`, without the images that judge trials."""
        return self.path / "tuning" / "sensitivity" / f"{seed}.safetensors"

    @property
    def tuning_work(self) -> Path:
        """Checkpoints of trials in progress, in ``<method>/<number>``."""
        return self.path / "tuning" / "work"

    def baseline(self, seed: int) -> Path:
        return self._seed(seed) / "baseline"

    def sensitivity(self, seed: int) -> Path:
        return self._seed(seed) / "sensitivity.safetensors"

    def mask(self, seed: int, method: str) -> Path:
        return self._seed(seed) / "masks" / f"{method}.safetensors"

    def finetuned(self, seed: int, method: str) -> Path:
        return self._seed(seed) / "finetuned" / method

    def model(self, seed: int, method: str) -> Path:
        """Folder of a method's model; "biased" is a method, too."""
        return self.baseline(seed) if method == BIASED else self.finetuned(seed, method)

    def logits(self, seed: int, method: str) -> Path:
        """Logits of :meth:`model` on the test images."""
        return self._seed(seed) / "logits" / f"{method}.safetensors"

    def logits_of_pairs(self, seed: int, method: str) -> Path:
        """Logits of :meth:`model` on the held-out pairs."""
        return self._seed(seed) / "logits" / "pairs" / f"{method}.safetensors"

    @property
    def generation(self) -> Path:
        """Summary of the generation of ``synthetic``; it holds times, so no step depends on it."""
        return self.path / "generation.json"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def flips(self) -> Path:
        """How often the models change their mind on the held-out pairs."""
        return self.path / "flips.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def ablation(self, name: str) -> Path:
        """Results of an ablation, and folders with the variants of this run that it compares."""
        return self.path / ABLATIONS / name

    def _seed(self, seed: int) -> Path:
        return self.path / "seeds" / str(seed)


def model_step(seed: int, method: str) -> str:
    """The step that makes :meth:`Run.model`."""
    return f"train/{seed}" if method == BIASED else f"finetune/{seed}/{method}"


def _origin(path: Path) -> Path | None:
    path = Path(os.path.abspath(path))
    if len(path.parts) < 4 or path.parts[-3] != ABLATIONS or not (path.parents[2] / _CONFIG).exists():
        return None
    return path.parents[2]


def _load_own(file: Path, overrides: dict[str, str] | None = None) -> Config:
    """The settings of an existing run, perhaps one begun by an older version whose keys had other names."""
    try:
        config = config_file.load(file, overrides)
        _refuse_cut_off(file)
        return config
    except ConfigError as error:
        lines = str(error).splitlines()
        unknown = [
            line for line in lines if line.startswith(str(file)) and ("unknown key" in line or "not valid for" in line)
        ]
        if not unknown and all(line.startswith(str(file)) for line in lines):
            more = f" (and {len(lines) - 1} more faults)" if len(lines) > 1 else ""
            raise ConfigError(f"{lines[0]}{more}{_RESTORE}") from error
        if not unknown:
            raise
        more = f" (and {len(lines) - 1} more faults)" if len(lines) > 1 else ""
        raise ConfigError(
            f"{unknown[0]}{more}; this run is of another version of aimfair: edit {file.name}, or start again with"
            " --config FILE --overwrite"
        ) from error


def _refuse_cut_off(file: Path) -> None:
    """Refuses the beginning of what was written here, whose missing keys would take their defaults; an editor may leave
    out just the end of the last line."""
    text = file.read_text(encoding="utf-8")
    if text.endswith("\n"):
        return
    whole = config_file.dump(config_file.load(file))
    if whole.startswith(text) and whole != f"{text}\n":
        raise ConfigError(f"{file}: its last line has no end, it was cut off")


def _require_same_settings(ranks: Ranks, config: Config) -> None:
    """Called by every process.

    Raises:
        AimfairError: in every process, if they have different settings.
    """
    if ranks.size == 1:
        return
    first, *others = map(Config.model_validate_json, ranks.gather(config.model_dump_json()))
    for rank, other in enumerate(others, 1):
        if first != other:
            changes = "; ".join(config_file.differences(first, other))
            raise AimfairError(
                f"process {rank} has other settings than process 0: {changes}. Start all with the same command and file"
            )


def _require_run_or_empty(path: Path) -> None:
    """Refuses a directory with other files, which a run might remove or replace."""
    names = {entry.name for entry in path.iterdir()}
    foreign = sorted(name for name in names if not name.startswith(_LOCK) and not is_temporary(name))
    if foreign and _CONFIG not in names:
        raise AimfairError(
            f"{path}: not a run directory: it has no {_CONFIG} but holds {', '.join(foreign[:3])};"
            " choose another with --run"
        )


def _settle_config(path: Path, config: Config, *, overwrite: bool) -> Config:
    """Writes the settings of the run to ``config.yaml``, unless they may not change; returns them."""
    file = path / _CONFIG
    if file.exists():
        try:
            old = _load_own(file)
        except AimfairError:
            if not overwrite:
                raise
        else:
            if old == config:
                return old
            same = old.model_copy(update={name: getattr(config, name) for name in _OF_NO_RESULT}) == config
            if (
                not overwrite and not same and next((path / "stages").rglob("*.json"), None) is not None
            ):  # something is finished
                changes = "; ".join(config_file.differences(old, config))
                raise AimfairError(
                    f"{path}: this run has other settings: {changes}. Choose another directory with --run,"
                    " or take the new settings with --overwrite"
                )
    write_text(file, config_file.dump(config))
    return config
