"""The cache of engines: each is built once, under a lock, in a folder of its own.

An entry is ``<key>/`` with the files of the engine and ``entry.json``, which has their digests and how far the engine
was from eager. It appears atomically. The key is a digest of the facts: the model's weights and configuration, dtype,
shapes, versions. An entry may be deleted while no process uses it.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aimfair.base.errors import AimfairError
from aimfair.base.files import cache_folder, file_digest, sync, write_json
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.lock import locked
from aimfair.base.log import NOWHERE, Log
from aimfair.base.settings import Record
from aimfair.diffusion.engines.agreement import Agreement

GROWING = ".kernels"
"""Suffix of files that an engine writes while it runs; an entry has no digest of them."""

_ENTRY = "entry.json"
_KEY = re.compile(r"[0-9a-f]{32}")


class Entry(Record):
    """An engine's files.

    Attributes:
        facts: what they depend on.
        tools: versions of packages that are needed to build them, but not to run them.
        files: name -> SHA-256.
        agreement: with eager, from the first run; None: built where it cannot run, so not compared yet.
        model: folder of the model, for information.
        made: when it was built.
    """

    facts: dict[str, Any]
    tools: dict[str, str]
    files: dict[str, str]
    agreement: Agreement | None
    model: str
    made: str


class _Unusable(Exception):
    """The reason why an entry is invalid."""


def folder() -> Path:
    """``$XDG_CACHE_HOME/aimfair/engines``, or ``~/.cache/aimfair/engines``."""
    return cache_folder("engines")


def obtain(
    facts: dict[str, Any],
    make: Callable[[Path], Agreement | None],
    *,
    model: str,
    tools: dict[str, str],
    log: Log = NOWHERE,
    interrupt: Interrupt = NEVER,
) -> Path:
    """The folder of the entry for these facts; built if there is no valid one.

    Args:
        facts: in JSON types.
        make: writes the files into an empty folder and, if the engine can run here, compares it with eager.
        model: as in :class:`Entry`.
        tools: the installed ones; an entry built with other versions is rebuilt.

    Raises:
        AimfairError: the new engine differs from eager, or from ``make``.
        OSError: the entry cannot be written.
        Interrupted: as ``interrupt`` says; nothing is left behind.
    """
    root = folder()
    place = root / hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(place, log, interrupt):
            if os.path.lexists(place):
                try:
                    _require_fresh(_read(place), facts, tools)
                    return place
                except _Unusable as fault:
                    log.warn(f"{place}: {fault}; building it again")
                    _remove(place)
            for stray in root.glob(f".{place.name}.*.tmp"):  # left by killed processes: a live one holds the lock
                _remove(stray)
            _build(place, facts, make, model, tools)
    except OSError as error:
        error.add_note("an engine is as large as its model")
        raise
    return place


def record(place: Path, agreement: Agreement, interrupt: Interrupt) -> None:
    """Records the agreement of an engine that was not compared when it was built.

    Raises:
        AimfairError: it differs from eager; the entry is unchanged.
        Interrupted: as ``interrupt`` says.
    """
    entry = entry_of(place)
    _refuse_difference(entry.facts, agreement)
    with _locked(place, NOWHERE, interrupt):
        write_json(place / _ENTRY, entry.model_copy(update={"agreement": agreement}).model_dump(mode="json"))


def remove(place: Path, entry: Entry, interrupt: Interrupt) -> None:
    """Removes an entry, unless another process has rebuilt it."""
    with _locked(place, NOWHERE, interrupt):
        if os.path.lexists(place) and _files_of(place) == entry.files:
            _remove(place)


def _files_of(place: Path) -> dict[str, str] | None:
    try:
        return entry_of(place).files
    except (OSError, ValidationError):
        return None


@contextlib.contextmanager
def _locked(place: Path, log: Log, interrupt: Interrupt) -> Iterator[None]:
    """Holds the lock of an entry; reports if another process holds it."""
    path = place.with_name(f"{place.name}.lock")
    with locked(path, interrupt, waiting=lambda: log.tell(f"waiting for another process, which is building {place}")):
        yield


def entries() -> Iterator[tuple[Path, Entry | str]]:
    """Each folder of the cache with its entry, or with the reason why it is invalid."""
    root = folder()
    for place in sorted(root.iterdir()) if root.is_dir() else []:
        if _KEY.fullmatch(place.name):
            try:
                yield place, _read(place)
            except _Unusable as fault:
                yield place, str(fault)


def _build(
    place: Path, facts: dict[str, Any], make: Callable[[Path], Agreement | None], model: str, tools: dict[str, str]
) -> None:
    draft = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    draft.mkdir()
    try:
        agreement = make(draft)
        if agreement is not None:
            _refuse_difference(facts, agreement)
        files = sorted(path for path in draft.rglob("*") if path.is_file() and path.suffix != GROWING)
        for path in files:
            sync(path)
        entry = Entry(
            facts=facts,
            tools=tools,
            files={path.relative_to(draft).as_posix(): file_digest(path) for path in files},
            agreement=agreement,
            model=model,
            made=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        write_json(draft / _ENTRY, entry.model_dump(mode="json"))
        draft.rename(place)
        sync(place.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _refuse_difference(facts: dict[str, Any], agreement: Agreement) -> None:
    if not agreement.good:
        remedy = "use --generate.engine eager" if "quantization" not in facts else "leave out generate.quantization"
        raise AimfairError(
            f"generate.engine: {facts['engine']} is not to be trusted with generate.model: {agreement}; {remedy}"
        )


def entry_of(place: Path) -> Entry:
    """The record of an existing entry, unchecked."""
    return Entry.model_validate_json((place / _ENTRY).read_bytes())


def _read(place: Path) -> Entry:
    """An entry whose files match its digests."""
    try:
        entry = entry_of(place)
    except FileNotFoundError:
        raise _Unusable(f"has no {_ENTRY}, so it is not an engine") from None
    except (OSError, ValidationError) as error:
        raise _Unusable(f"{_ENTRY} is damaged") from error
    for name, digest in entry.files.items():
        path = place / name
        if not path.is_file():
            raise _Unusable(f"{name} is missing")
        if file_digest(path) != digest:
            raise _Unusable(f"{name} is damaged")
    if not entry.files or (entry.agreement is not None and not entry.agreement.good):
        raise _Unusable("the engine was not found to agree with eager")
    return entry


def _require_fresh(entry: Entry, facts: dict[str, Any], tools: dict[str, str]) -> None:
    if entry.facts != facts:
        raise _Unusable("is of another model or setting")
    for name, version in tools.items():
        if entry.tools.get(name) != version:
            raise _Unusable(f"was made with {name} {entry.tools.get(name)}, now there is {version}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
