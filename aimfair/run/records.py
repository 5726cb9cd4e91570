"""The record of a finished step: a small file, written last, with a digest of its inputs and its output files."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import aimfair
from aimfair.base.errors import AimfairError
from aimfair.base.files import replace_file, sync, write_json


class Records:
    """The records of a run directory, ``stages/<step>.json``; a step is named by a path such as "train/100"."""

    def __init__(self, run: Path):
        self._run = run
        self._read_before: dict[str, tuple[tuple[int, int, int], dict[str, Any] | None]] = {}
        self._found_whole: set[str] = set()  # digests of records whose files were all there

    def matches(self, step: str, inputs: object, *, content: bool = False) -> bool:
        """Whether the step was finished with these inputs and every output file still has its size.

        A record that does not match is removed: the step is about to replace its files, and may be killed half-way.

        Args:
            content: the files must have their bytes, too.
        """
        record = self._read(step)
        if record is None:
            return False
        same = record["inputs_digest"] == digest_of_inputs(inputs) and record["upstream"] == _upstream(inputs)
        if same and self._is_whole(record) and not (content and self._is_changed(record)):
            return True
        self._path(step).unlink()
        return False

    def exists(self, step: str) -> bool:
        """Whether the step has a valid record."""
        return self._read(step) is not None

    def write(self, step: str, inputs: object, outputs: Sequence[Path]) -> None:
        """Records the step with its ``outputs``: files, or folders with all files in them."""
        files = sorted(file for output in outputs for file in _files(output))
        path = self._path(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            path,
            {
                "step": step,
                "inputs_digest": digest_of_inputs(inputs),
                "digest": self._digest(digest_of_inputs(inputs), files),
                "upstream": _upstream(inputs),
                "outputs": {str(file.relative_to(self._run)): file.stat().st_size for file in files},
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "aimfair": aimfair.__version__,
            },
        )

    def adopt(self, step: str, inputs: object, origin: "Records") -> bool:
        """Takes over a step that another run has finished with the same inputs; False if it has not.

        Files become hard links, or copies on another disk. Runs replace files and never change them in place, so
        neither run affects the other. The record is written last, and only if the other run's is unchanged: a step
        removes its record before it replaces its files.
        """
        record = origin._read(step)
        if record is None or record["inputs_digest"] != digest_of_inputs(inputs) or not origin._is_whole(record):
            return False
        folders = set()
        try:
            for name in record["outputs"]:
                _link(origin._run / name, self._run / name)
                folders.add((self._run / name).parent)
        except FileNotFoundError:  # the other run has started the step again
            return False
        for folder in folders:
            sync(folder)
        if origin._read(step) != record or not self._is_whole(record):
            return False
        path = self._path(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
        return True

    def digest(self, step: str, *, content: bool = False, inputs: object = None) -> str:
        """Digest of the inputs and output bytes of a finished step.

        Args:
            content: the files must still have those bytes.
            inputs: those that it must have had; None: any.

        Raises:
            AimfairError: it is not finished, has lost a file or, with ``content``, one was changed, a step whose
                results it read was done again since, or it had other ``inputs``.
        """
        record = self._read(step)
        if record is None:
            fault = "is not finished"
        elif not self._is_whole(record, again=False):
            fault = "has lost files that it made"
        elif content and self._is_changed(record):
            fault = "has files that were changed since"
        elif not self._is_fresh(record, self._by_digest()):
            fault = "is out of date: a step whose results it read was done again"
        elif inputs is not None and record["inputs_digest"] != digest_of_inputs(inputs):
            fault = "is out of date: settings that it reads have changed"
        else:
            return str(record["digest"])
        verb = step.split("/")[0].replace("flips", "evaluate")  # which has no verb of its own
        raise AimfairError(f"{self._run}: step {step!r} {fault}; do it first: aimfair {verb} --run {self._run}")

    def _is_whole(self, record: dict[str, Any], *, again: bool = True) -> bool:
        """Whether every output file still has its size.

        Args:
            again: look even if all were there before; for thousands of images that takes a while.
        """
        if not again and record["digest"] in self._found_whole:
            return True
        sizes = record["outputs"]
        whole = all((file := self._run / name).is_file() and file.stat().st_size == sizes[name] for name in sizes)
        if whole:
            self._found_whole.add(record["digest"])
        return whole

    def _is_changed(self, record: dict[str, Any]) -> bool:
        """Whether the output files, which are there, have other bytes."""
        files = sorted(self._run / name for name in record["outputs"])
        return bool(self._digest(record["inputs_digest"], files) != record["digest"])

    def _is_fresh(
        self, record: dict[str, Any], by_digest: dict[str, dict[str, Any]], below: tuple[str, ...] = ()
    ) -> bool:
        """Whether every step upstream, direct or indirect, is still the one that was read.

        Args:
            below: digests of the steps on the way here; one of them upstream is a circle, which no run makes.
        """
        way = (*below, record["digest"])
        return all(
            digest in by_digest and digest not in way and self._is_fresh(by_digest[digest], by_digest, way)
            for digest in record["upstream"]
        )

    def _by_digest(self) -> dict[str, dict[str, Any]]:
        folder = self._run / "stages"
        steps = (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.json"))
        return {record["digest"]: record for step in steps if (record := self._read(step))}

    def _path(self, step: str) -> Path:
        return self._run / "stages" / f"{step}.json"

    def _read(self, step: str) -> dict[str, Any] | None:
        """The record, cached until its file changes; None if there is none, or it is damaged."""
        path = self._path(step)
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        before = self._read_before.get(step)
        if before is None or before[0] != stamp:
            before = self._read_before[step] = (stamp, _parse(path))
        return before[1]

    def _digest(self, inputs_digest: str, files: Sequence[Path]) -> str:
        digest = hashlib.sha256(inputs_digest.encode())
        for file in files:
            digest.update(str(file.relative_to(self._run)).encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()


def _parse(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        texts = [record["digest"], record["inputs_digest"], *record["upstream"]]
        whole = isinstance(record["outputs"], dict) and isinstance(record["upstream"], list)
        return record if whole and all(isinstance(text, str) for text in texts) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _files(output: Path) -> list[Path]:
    if output.is_dir():
        return [path for path in output.rglob("*") if path.is_file()]
    if not output.is_file():
        raise FileNotFoundError(f"{output}: not found, but the step that makes it is finished")
    return [output]


def _link(source: Path, target: Path) -> None:
    """Makes ``target`` a hard link to ``source``, or a copy where links are impossible."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        os.link(source, temporary)
        os.replace(temporary, target)
    except FileNotFoundError:
        raise
    except OSError:  # another disk, or a file system without links
        with replace_file(target) as copy:
            shutil.copyfile(source, copy)
    finally:
        temporary.unlink(missing_ok=True)  # it stays if both already were links to one file


def _upstream(inputs: object) -> list[str]:
    """The digests of other steps in the inputs: one or several, under the key ``upstream``."""
    found = inputs.get("upstream", []) if isinstance(inputs, dict) else []
    return [found] if isinstance(found, str) else list(found)


def digest_of_inputs(inputs: object) -> str:
    """SHA-256 of the inputs as JSON with sorted keys."""
    text = json.dumps(inputs, default=_plain, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: object) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"inputs of a step hold a {type(value).__name__}, expected what JSON, pydantic or Path can hold")
