"""``aimfair delta``: the difference between two models as a file, exact to the bit."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from aimfair.base.errors import AimfairError, ConfigError
from aimfair.commands.settings import Overrides, refuse_overrides

if TYPE_CHECKING:
    from aimfair import Delta

_FILES = {
    "make": ("BASE", "RESULT"), "apply": ("DELTA", "BASE"), "revert": ("DELTA", "RESULT"),
    "verify": ("DELTA", "MODEL"), "merge": ("DELTA", "DELTA..."),
    "to-shira": ("DELTA", "BASE"), "from-shira": ("ADAPTER", "BASE"),
}  # fmt: skip
"""Action -> the files it takes."""

_FLAGS = {
    "--to": ("make", "apply", "revert", "merge", "to-shira", "from-shira"),
    "--one-way": ("make", "from-shira"),
    "--base": ("merge",),
    "--on-conflict": ("merge",),
}
"""Flag -> the actions that take it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "; ".join(f"{action} {' '.join(files)}" for action, files in _FILES.items())
        + ". A model is a safetensors file, or a folder with model.safetensors or with shards and their index; for"
        " to-shira, a folder that aimfair wrote. An adapter is a folder of PEFT."
    )
    parser.add_argument("action", choices=tuple(_FILES), help="verify: names the tensors that differ")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="models and deltas, as below")
    parser.add_argument("--to", type=Path, metavar="FILE", help="what is written: a delta, a model or an adapter")
    parser.add_argument("--one-way", action="store_true", help="without the old values, which revert needs")
    parser.add_argument("--base", type=Path, metavar="MODEL", help="merge: the base of the deltas")
    parser.add_argument(
        "--on-conflict",
        choices=("error", "first", "last"),
        help="merge: whose value counts where deltas set an element to different ones (default: error)",
    )


def main(options: argparse.Namespace, overrides: Overrides) -> int:
    refuse_overrides("delta", overrides)
    _require_arguments(options)
    try:
        _ACTIONS[options.action](options.files, options)
    except (TypeError, ValueError) as error:
        raise AimfairError(str(error)) from error
    return 0


def _require_arguments(options: argparse.Namespace) -> None:
    action, expected = options.action, _FILES[options.action]
    for flag, actions in _FLAGS.items():
        given = getattr(options, flag.strip("-").replace("-", "_"))
        if given and action not in actions:
            raise ConfigError(f"{flag}: aimfair delta {action} has no such flag")
        if not given and action in actions and flag in ("--to", "--base"):
            raise ConfigError(f"aimfair delta {action}: give {flag}")
    for file in [*options.files, *filter(None, [options.base])]:
        if not file.exists():
            raise ConfigError(f"{file}: no such file or folder")
    count = len(options.files)
    if count != len(expected) and not (action == "merge" and count > len(expected)):
        raise ConfigError(f"aimfair delta {action}: expected {' '.join(expected)}, found {count} files")
    if options.to is not None:
        _require_target(options)


def _require_target(options: argparse.Namespace) -> None:
    """Refuses to replace what is read; apply and revert may write a model in its own place."""
    action, to = options.action, options.to
    converts = action in ("apply", "revert")
    read = options.files[:1] if converts else [*options.files, *filter(None, [options.base])]
    weights = [file for folder in read if folder.is_dir() for file in folder.glob("*.safetensors")]
    if to.exists() and any(to.samefile(one) for one in [*read, *weights]):
        raise ConfigError(f"--to {to}: aimfair delta {action} reads it; name another")
    if not converts and action != "to-shira":
        if to.is_dir():
            raise ConfigError(f"--to {to}: a folder; name a file")
        to.parent.mkdir(parents=True, exist_ok=True)


def _make(files: list[Path], options: argparse.Namespace) -> None:
    from aimfair import Delta

    base, result = files
    delta = Delta.make(base, result, options.to, reversible=not options.one_way)
    _describe(delta, options.to)


def _apply(files: list[Path], options: argparse.Namespace) -> None:
    from aimfair import Delta

    delta, base = Delta.load(files[0]), files[1]
    delta.apply(base, options.to)
    print(f"{options.to}: the result, SHA-256 of its tensors {delta.result}")


def _revert(files: list[Path], options: argparse.Namespace) -> None:
    from aimfair import Delta

    delta, result = Delta.load(files[0]), files[1]
    delta.revert(result, options.to)
    print(f"{options.to}: the base, SHA-256 of its tensors {delta.base}")


def _verify(files: list[Path], options: argparse.Namespace) -> None:
    from aimfair import Delta

    delta, model = Delta.load(files[0]), files[1]
    found = delta.verify(model)
    if not found.is_result:
        raise AimfairError(f"{model} is not the result: {found}")
    for name, change in delta.changes.items():
        print(f"{name}: {change.nnz:,} of {change.numel:,} elements changed")
    print(f"{model} is {found}")


def _merge(files: list[Path], options: argparse.Namespace) -> None:
    from aimfair import Delta

    merged = Delta.merge([Delta.load(file) for file in files], options.base, on_conflict=options.on_conflict or "error")
    merged.save(options.to)
    _describe(merged, options.to)


def _to_shira(files: list[Path], options: argparse.Namespace) -> None:
    from aimfair import Delta
    from aimfair.selective.shira import write_adapter
    from aimfair.training.models import load_model

    delta, base = Delta.load(files[0]), files[1]
    if not base.is_dir():
        raise ConfigError(f"{base}: a file; give the model's folder, whose config.json tells which layers are linear")
    written = write_adapter(delta, load_model(base), options.to)
    print(f"{options.to}: r = {written.r}, {len(written.sparse)} linear layers, {len(written.whole)} modules whole")
    if written.inexact:
        print(
            f"PEFT will not reach {written.inexact:,} of {delta.nnz:,} elements exactly: off by at most"
            f" {written.largest_error:.3g}"
        )


def _from_shira(files: list[Path], options: argparse.Namespace) -> None:
    from aimfair.selective.shira import read_adapter

    adapter, base = files
    delta = read_adapter(adapter, base, reversible=not options.one_way)
    delta.save(options.to)
    _describe(delta, options.to)


def _describe(delta: "Delta", path: Path) -> None:
    share, size = delta.nnz / max(delta.numel, 1), path.stat().st_size / 1e6
    tensors = len(delta.changes)
    print(f"{path}: {delta.nnz:,} of {delta.numel:,} elements ({share:.2%}) in {tensors} tensors, {size:,.1f} MB")


_ACTIONS: dict[str, Callable[[list[Path], argparse.Namespace], None]] = {
    "make": _make, "apply": _apply, "revert": _revert, "verify": _verify, "merge": _merge,
    "to-shira": _to_shira, "from-shira": _from_shira,
}  # fmt: skip
