"""The command line: a verb for each stage, ``run`` for all of them, and a flag for every setting.

Exit codes: 0 done; 1 an error; 2 a setting or a command line that cannot be used; 130 and 143 stopped by SIGINT and
SIGTERM. What is imported here is what ``--help`` pays for, so the rest is imported where it is used.
"""

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aimfair.base.errors import AimfairError, ConfigError
from aimfair.base.interrupt import Interrupted

if TYPE_CHECKING:
    from aimfair.config import Config
    from aimfair.run.directory import Run
    from aimfair.scan.settings import ScanSettings

_STAGES = {
    "prompts": "write the prompts of every group",
    "generate": "make the synthetic images",
    "train": "train the biased model on the biased real images",
    "sensitivity": "accumulate its gradients on real, biased and fair images",
    "select": "choose the weights that each method tunes",
    "finetune": "tune them on the fair synthetic images, and train the other methods",
    "evaluate": "compute the metrics of every model on the test images",
    "report": "write report.html",
    "run": "do all of these; what is done already is not done again",
    "demo": "run on coloured digits, with the settings that come with aimfair",
}

BUNDLED = Path(__file__).parents[1] / "configs"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line; the exit code."""
    _let_idle_threads_sleep()
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # no place in the code
    parser = _parser()
    options, words = parser.parse_known_args(arguments)
    try:
        overrides = _overrides(words)
        return _OTHER_VERBS.get(options.verb, _stages)(options, overrides)
    except (Exception, KeyboardInterrupt) as error:
        if options.debug:
            traceback.print_exc()
        return _report_error(error)


def _report_error(error: BaseException) -> int:
    """Prints what a person needs to know; the exit code."""
    if isinstance(error, AimfairError):
        prefix = "" if isinstance(error, Interrupted) else "error: "
        print("\n".join(prefix + line for line in str(error).splitlines()), file=sys.stderr)
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    if isinstance(error, BrokenPipeError):  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    message = str(error).strip() or "no details"
    kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
    print(f"error: {kind}{' '.join(message.split())} (--debug shows where)", file=sys.stderr)
    return 1


# -- verbs -------------------------------------------------------------------------------------------------------------


def _stages(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    from aimfair.generation.ranks import processes, rank_here
    from aimfair.run.directory import Run
    from aimfair.stages.pipeline import STAGES, run_stages

    if processes() > 1 and options.verb != "generate":
        raise ConfigError(
            f"aimfair {options.verb}: found WORLD_SIZE={processes()}, but only aimfair generate shares its work between"
            " several processes; start that with torchrun, and this without"
        )
    config, directory = _config_and_directory(options, overrides)
    if rank_here() > 0:
        return _follow(directory)
    with Run.open(directory, config, overwrite=options.overwrite, quiet=options.quiet) as run:
        run_stages(run, STAGES if options.verb in ("run", "demo") else (options.verb,))
        if options.verb in ("run", "demo", "report"):
            _print_headline(run)
    return 0


def _follow(directory: Path) -> int:
    """In another process than that of rank 0, which has the run and shows how far it is."""
    from aimfair.base.interrupt import Interrupt
    from aimfair.stages import generate

    with Interrupt() as interrupt:
        generate.follow(directory, interrupt)
    return 0


def _print_headline(run: "Run") -> None:
    """What the run has shown, in a sentence, and where to read on."""
    from aimfair.evaluation.results import Results
    from aimfair.report.wording import headline

    print(headline(Results.load(run.results)))
    print(f"Report: {run.report}")


def _show_config(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    from aimfair.config import load as config_file

    if options.keys:
        print(config_file.reference())
    else:
        print(config_file.dump(_config_and_directory(options, overrides)[0]), end="")
    return 0


def _doctor(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    from aimfair.commands.doctor import examine

    if overrides:
        raise ConfigError(f"--{next(iter(overrides))}: doctor takes no settings")
    return examine(options.run or Path("runs"))


def _engine(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    from aimfair.commands.engine import build_or_check, list_engines

    if options.action == "list":
        if overrides:
            raise ConfigError(f"--{next(iter(overrides))}: engine list takes no settings")
        return list_engines()
    return build_or_check(options.action, _config_and_directory(options, overrides)[0])


def _scan(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    from aimfair.commands.scan import scan_data

    return scan_data(_scan_settings(options, overrides), options.json, quiet=options.quiet)


def _scan_settings(options: argparse.Namespace, overrides: dict[str, str]) -> "ScanSettings":
    """Of those of a run, the ones that a scan needs; flags may be all that there is."""
    from aimfair.config import load as config_file
    from aimfair.scan.settings import ScanSettings

    config_file.require_known(overrides)
    file = None
    if options.config is not None:
        file = _config_file(options.config)
    elif options.run is not None:
        file = options.run / "config.yaml"
        if not file.exists():
            raise ConfigError(f"{options.run}: there is no run yet; give --config FILE or --data.kind and --data.root")
    elif not any(name.startswith("data.") for name in overrides):
        raise ConfigError(
            "give --config FILE, --run DIR, or the data set itself: --data.kind table --data.root DIR ..."
        )
    return config_file.load_part(ScanSettings, file, overrides)


def _export(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    if overrides:
        raise ConfigError(f"--{next(iter(overrides))}: export takes no settings; it reads those of the run")
    if options.run is None:
        raise ConfigError("give --run DIR, a run that is evaluated")
    from aimfair.commands.export import describe, export_run
    from aimfair.run.directory import Run

    config = Run.config_of(options.run)
    if config is None:
        raise ConfigError(f"{options.run}: there is no run; give --run DIR, a run that is evaluated")
    with Run.open(options.run, config, quiet=options.quiet) as run:
        to = export_run(
            run,
            method=options.method,
            seed=options.seed,
            to=options.to,
            with_onnx=not options.no_onnx,
            license=options.license,
            overwrite=options.overwrite,
        )
    print(describe(to))
    return 0


def _ablate(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    from aimfair.ablation.options import Options
    from aimfair.commands.ablate import ablate
    from aimfair.config import load as config_file
    from aimfair.generation.ranks import processes

    if processes() > 1:
        raise ConfigError(
            f"aimfair ablate: found WORLD_SIZE={processes()}, expected one process; start it without torchrun"
        )
    config_file.require_known(overrides)
    if options.run is None:
        raise ConfigError("aimfair ablate: give --run DIR, the run that is varied")
    asked = Options(options.method, options.values, options.lrs, options.density)
    page = ablate(options.name, options.run, asked, overrides, overwrite=options.overwrite, quiet=options.quiet)
    print(f"Page: {page}")
    return 0


_OTHER_VERBS = {
    "ablate": _ablate,
    "config": _show_config,
    "doctor": _doctor,
    "engine": _engine,
    "export": _export,
    "scan": _scan,
}
"""Those that are no stages of a run."""


def _config_and_directory(options: argparse.Namespace, overrides: dict[str, str]) -> "tuple[Config, Path]":
    """The settings, of --config or else of the run in --run, and the directory of the run."""
    from aimfair.config import load as config_file
    from aimfair.run.directory import Run

    config_file.require_known(overrides)
    name = "demo" if options.verb == "demo" else options.config
    if name is not None:
        file = _config_file(name)
        return config_file.load(file, overrides), options.run or Path("runs") / file.stem
    if options.run is None:
        raise ConfigError("give --config FILE for a new run, or --run DIR for one that was begun")
    config = Run.config_of(options.run, overrides)
    if config is None:
        raise ConfigError(f"{options.run}: there is no run yet; give --config FILE to begin one")
    return config, options.run


def _config_file(name: str) -> Path:
    """A file, or one of those that come with aimfair by its bare name."""
    bundled = sorted(file.stem for file in BUNDLED.glob("*.yaml"))
    if name in bundled:
        return BUNDLED / f"{name}.yaml"
    if not Path(name).is_file():
        raise ConfigError(f"--config {name}: no such file, and none of those included: {', '.join(bundled)}")
    return Path(name)


# -- the command line itself -------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    from aimfair import __version__
    from aimfair.ablation.registry import ABLATIONS

    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    common.add_argument(
        "--run", type=Path, metavar="DIR", help="directory of the run (default: runs/<name of the config>)"
    )
    config = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config.add_argument("--config", metavar="FILE", help="a YAML file, or the name of one that comes with aimfair")
    work = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    work.add_argument("--overwrite", action="store_true", help="let an existing run take other settings")
    work.add_argument("--quiet", action="store_true", help="no progress, only warnings, errors and results")
    settings = "Every setting is a flag, too: --train.lr 0.01 --seeds 1,2. They are listed by: aimfair config --keys"

    parser = argparse.ArgumentParser(
        "aimfair", description="From a biased classifier to a fair one.", epilog=settings, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"aimfair {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def add(verb: str, help: str, *parents: argparse.ArgumentParser, **more: Any) -> argparse.ArgumentParser:
        description = f"{help[0].upper()}{help[1:]}."
        return verbs.add_parser(
            verb, help=help, description=description, parents=[common, *parents], allow_abbrev=False, **more
        )

    for verb, help in _STAGES.items():
        add(verb, help, *([work] if verb == "demo" else [config, work]), epilog=settings)
    show = add("config", "print the settings that a command line results in", config, epilog=settings)
    show.add_argument("--keys", action="store_true", help="list every setting with type, default and meaning")
    engine = add("engine", "build, list or check the engines that make images", config, epilog=settings)
    engine.add_argument(
        "action", choices=("build", "list", "check"), help="build: for these settings; list: all that are kept"
    )
    scan = add("scan", "look at the whole data set before anything is trained", config, epilog=settings)
    scan.add_argument("--json", type=Path, metavar="FILE", help="write what is found to FILE, too")
    scan.add_argument("--quiet", action="store_true", help="no progress, only what is found")
    export = add("export", "write a model of a run as a folder that works without aimfair")
    export.add_argument("--method", metavar="NAME", help="which one, or biased (default: default_method of the run)")
    export.add_argument("--seed", type=int, metavar="N", help="(default: the best one by validation accuracy)")
    export.add_argument("--to", type=Path, metavar="FOLDER", help="(default: export/METHOD-SEED in the run)")
    export.add_argument("--no-onnx", action="store_true", help="without model.onnx, which needs aimfair[onnx]")
    export.add_argument("--license", default="unknown", metavar="ID", help="for the model card, such as apache-2.0")
    export.add_argument("--overwrite", action="store_true", help="replace an earlier export in the folder")
    export.add_argument("--quiet", action="store_true", help="no progress, only warnings, errors and results")
    ablate = add(
        "ablate",
        "vary a run and compare",
        work,
        epilog="Ablations: " + "; ".join(f"{name}: {what}" for name, what in ABLATIONS.items()) + f". {settings}",
    )
    ablate.add_argument(
        "name", type=_ablation_name, choices=tuple(ABLATIONS), metavar="NAME", help=", ".join(ABLATIONS)
    )
    ablate.add_argument("--method", metavar="NAME", help="which method is varied (default: default_method)")
    ablate.add_argument(
        "--values", metavar="A,B,...", help="what it is varied over; docs/ablations.md says what of which"
    )
    ablate.add_argument("--lrs", metavar="A,B,...", help="density: learning rates; the best by validation is shown")
    ablate.add_argument(
        "--density", metavar="SHARE", help="criteria: of all selections (default: the method's, or 0.1)"
    )
    add("doctor", "check the installation and say what mends it")
    parser.set_defaults(config=None)
    return parser


def _ablation_name(word: str) -> str:
    from aimfair.ablation.registry import RENAMED

    if word in RENAMED:
        raise argparse.ArgumentTypeError(f"{word} is now called {RENAMED[word]}")
    return word


def _overrides(words: Sequence[str]) -> dict[str, str]:
    """Settings from what the parser left over: ``--key value`` and ``--key=value``."""
    result: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if not word.startswith("--") or word == "--":
            raise ConfigError(f"{word!r}: not understood; settings are given as --key value")
        key, equals, value = word[2:].partition("=")
        if not equals:
            value = next(rest, "--")
            if value.startswith("--"):
                raise ConfigError(f"--{key}: expected a value after it")
        result[key] = value
    return result


def _let_idle_threads_sleep() -> None:
    """By default idle OpenMP threads spin, which can cost a busy machine with few cores a hundredfold.

    Read when torch is loaded, hence here; what the environment says stands.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
