"""The command line: the parser, the table of verbs, and errors in one line with their exit codes.

Exit codes: 0 done; 1 an error; 2 a setting or a command line that cannot be used; 130 and 143 stopped by SIGINT and
SIGTERM. ``--help`` pays for every import at the top of the files in this folder, so they import the rest where they
use it.
"""

import argparse
import difflib
import errno
import os
import re
import signal
import stat
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from aimfair.base.errors import AimfairError, ConfigError
from aimfair.base.files import cache_folder
from aimfair.base.interrupt import Interrupted, Terminated, terminable
from aimfair.base.libraries import broken_library
from aimfair.base.os_errors import FULL, explain
from aimfair.commands import ablate, audit, config, delta, doctor, engine, export, run, scan
from aimfair.commands.settings import FLAGS_FOR_SETTINGS, Overrides, require_one_process

Main = Callable[[argparse.Namespace, Overrides], int]
AddArguments = Callable[[argparse.ArgumentParser], None]

VERBS: dict[str, tuple[str, Main, AddArguments]] = {
    **{stage: (help, run.main, run.add_arguments) for stage, help in run.STAGES.items()},
    "run": ("do all of these; what is done already is not done again", run.main, run.add_arguments),
    "demo": ("run on coloured digits, with the settings that come with aimfair", run.main, run.add_demo_arguments),
    "config": ("print the settings that a command line results in", config.main, config.add_arguments),
    "engine": ("build, list or check the engines that make images", engine.main, engine.add_arguments),
    "audit": ("measure the fairness of predictions in a table, of any model", audit.main, audit.add_arguments),
    "scan": ("examine the whole data set before anything is trained", scan.main, scan.add_arguments),
    "export": ("write a model of a run as a folder that works without aimfair", export.main, export.add_arguments),
    "delta": (
        "make, apply, revert, verify, merge or convert the difference of two models",
        delta.main,
        delta.add_arguments,
    ),
    "ablate": ("vary a run and compare", ablate.main, ablate.add_arguments),
    "doctor": ("check the installation and say how to fix it", doctor.main, doctor.add_arguments),
}
"""Verb -> its help, what it does, and what adds its arguments to the parser."""

_CONTINUING = {*run.STAGES, "run", "demo", "ablate"}
"""Verbs whose work is kept when they are stopped; the others start over."""

_OF_SEVERAL = {*run.STAGES, "run", "demo", "config", "doctor"}
"""Verbs whose work the processes of torchrun share, and those that write nothing."""

_LIBRARIES_OF_FAIR = {"jinja2", "PIL", "pydantic", "pydantic_core", "rich", "scipy", "yaml"}
"""Top-level modules of the extra ``fair``, which the base install lacks."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line; returns the exit code."""
    _let_idle_threads_sleep()
    _silence_store()
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # without a place in the code
    parser, verbs = _parser()
    options, words = parser.parse_known_args(arguments)
    try:
        with terminable():
            _, verb, _ = VERBS[options.verb]
            _refuse_unknown_flags(options.verb, words, {name: _flags(one) for name, one in verbs.items()})
            if options.verb not in _OF_SEVERAL:
                require_one_process(options.verb)
            code = verb(options, _overrides(words))
            if sys.stdout is not None:  # closed, as under some daemons
                sys.stdout.flush()
            return code
    except (Exception, KeyboardInterrupt) as error:
        if options.debug:
            traceback.print_exc()
        return _report_error(error, options)


def _report_error(error: BaseException, options: argparse.Namespace) -> int:
    """Prints an error in one line; returns the exit code."""
    if isinstance(error, Exception) and (broken := broken_library(error)):
        print(f"error: {broken}", file=sys.stderr)
        return 1
    if isinstance(error, KeyboardInterrupt):
        error = Interrupted(signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)
    if isinstance(error, Interrupted):
        again = "continues" if options.verb in _CONTINUING else "starts over"
        print(f"{error}; the same command {again}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, AimfairError):
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return error.exit_code
    if isinstance(error, BrokenPipeError):  # the reader of our output has closed it
        _drop_output()
        return 1
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in _LIBRARIES_OF_FAIR:
        print(f"error: aimfair {options.verb} needs {error.name}: pip install 'aimfair[fair]'", file=sys.stderr)
        return 1
    if isinstance(error, OSError) and error.errno is not None:
        if _is_of_output(error):
            _drop_output()
            print(f"error: standard output cannot be written: {os.strerror(error.errno).lower()}", file=sys.stderr)
            return 1
        print(f"error: {explain(error, _places(options))}", file=sys.stderr)
        return 1
    message = " ".join(str(error).split()) or "no details"
    print(f"error: {type(error).__name__}: {message} (--debug shows where)", file=sys.stderr)
    return 1


def _is_of_output(error: OSError) -> bool:
    """Whether it can only be that of a redirected standard output: what aimfair writes itself has a name."""
    if error.filename is not None or error.errno not in FULL | {errno.EFBIG, errno.EIO, errno.EBADF}:
        return False
    if sys.stdout is None or sys.stdout.isatty():
        return False
    return not stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode)


def _drop_output() -> None:
    """What could not be written is not tried again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _places(options: argparse.Namespace) -> dict[Path, str]:
    """The files and folders that a command writes to, and what chooses others."""
    given = {flag: getattr(options, flag.strip("-"), None) for flag in ("--run", "--to", "--json", "--html")}
    places = {path: flag for flag, path in given.items() if path is not None} or {Path("runs"): "--run"}
    return places | {cache_folder("").parent: "XDG_CACHE_HOME"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """As there, with what may have been meant by an unknown verb or name."""
        found = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        near = difflib.get_close_matches(found[1], re.findall(r"[\w-]+", found[2]), 1) if found else []
        super().error(message + "".join(f"; did you mean {one}?" for one in near))


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the command line, and that of each verb."""
    from aimfair import __version__

    parser = _Parser(
        "aimfair",
        description="From a biased classifier to a fair one.",
        epilog=FLAGS_FOR_SETTINGS,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"aimfair {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, (help, _, add_arguments) in VERBS.items():
        description = f"{help[0].upper()}{help[1:]}."
        verb = verbs.add_parser(name, help=help, description=description, allow_abbrev=False)
        verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
        add_arguments(verb)
    return parser, dict(verbs.choices)


def _flags(parser: argparse.ArgumentParser) -> set[str]:
    return set(re.findall(r"--[a-z-]+", parser.format_usage()))


def _refuse_unknown_flags(verb: str, words: Sequence[str], flags: Mapping[str, set[str]]) -> None:
    """Refuses flags of other verbs, and those that look like one of this verb; the rest may be settings.

    Args:
        words: that the parser left over.
        flags: of every verb.
    """
    for name in (word.partition("=")[0] for word in words if word.startswith("--")):
        if "." in name:
            continue
        from aimfair.config import Config

        settings = {f"--{key}" for key in Config.model_fields}
        if name in settings:
            continue
        of_others = any(name in others for others in flags.values())
        known = sorted(flags[verb] | settings if of_others else flags[verb])
        if near := difflib.get_close_matches(name, known, 1, 0.8):
            raise ConfigError(f"{name}: unknown flag; did you mean {near[0]}?")
        if of_others:
            raise ConfigError(f"{name}: aimfair {verb} has no such flag; aimfair {verb} --help lists them")


def _overrides(words: Sequence[str]) -> Overrides:
    """Settings from the words that the parser left over: ``--key value`` and ``--key=value``."""
    result: Overrides = {}
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
    """By default idle OpenMP threads spin, which can slow a busy machine with few cores a hundredfold.

    They are read when torch is loaded, hence here; values in the environment take precedence.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")


def _silence_store() -> None:
    """The store of torchrun logs a stack trace for every call when another process has ended."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
