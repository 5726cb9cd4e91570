"""Finds and checks existing images in a folder, which is never changed.

The folder either has images in folders ``<y>_<a>``, named by the numbers of class and protected value, at any depth; or
it is the ``synthetic`` of another run, whose manifest says what each image is; its held-out pairs are left out.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath

from aimfair.base.errors import AimfairError, ConfigError
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.log import NOWHERE, Log
from aimfair.base.os_errors import explain
from aimfair.base.progress import Progress
from aimfair.data.cache import decode_files
from aimfair.data.catalogue import IMAGE_SUFFIXES, Rejected, image_files
from aimfair.data.settings import DataSettings
from aimfair.data.sources import Folder
from aimfair.data.sources import Source as Reader
from aimfair.generation.manifest import MANIFEST, MAX_PIXELS, TAR, Manifest
from aimfair.generation.plan import HELD_OUT, Group

UNREADABLE, COPY, TWO_GROUPS = "unreadable", "copy", "in two groups"
"""Why an image cannot be used."""

_GROUP = re.compile(r"(0|[1-9]\d{0,3})_(0|[1-9]\d{0,3})", re.ASCII)
_SMALL = 8  # pixels along each side of the decoded images, of which only the digests matter


@dataclass(frozen=True)
class Found:  # its repr is part of the digests that runs keep
    """An image of the group (y, a) in ``file``, relative to its folder; the rest as in a manifest."""

    file: str
    y: int
    a: int
    prompt: str = ""
    text: str = ""
    replica: int = 0
    seed: int = 0

    @property
    def group(self) -> Group:
        return self.y, self.a


@dataclass(frozen=True)
class Source:
    """A folder of existing images.

    Attributes:
        images: sorted by file.
        stamps: file -> its size in bytes and its modification time in ns; (-1, 0) if it is missing.
        ignored: names at the top of the folder that are not those of groups.
        digests: file -> digest of its pixels, of the images that can be decoded.
        unreadable: the others.
        rejected: file -> why it cannot be used: :data:`UNREADABLE`, :data:`COPY` or :data:`TWO_GROUPS`.
        reader: reads the images.
    """

    folder: Path
    images: tuple[Found, ...]
    stamps: dict[str, tuple[int, int]]
    ignored: tuple[str, ...]
    digests: dict[str, str]
    unreadable: tuple[Rejected, ...]
    rejected: dict[str, str]
    reader: Reader

    @property
    def digest(self) -> str:
        """Of the files' names, groups, texts and pixels: the same wherever they are copied to, and whenever."""
        facts = [(one, self.digests.get(one.file)) for one in self.images]
        return hashlib.sha256("\n".join(map(repr, facts)).encode("utf-8", "surrogatepass")).hexdigest()


def read_source(
    folder: Path,
    groups: tuple[int, int],
    data: DataSettings,
    *,
    log: Log = NOWHERE,
    progress: Progress | None = None,
    interrupt: Interrupt = NEVER,
) -> Source:
    """Finds and decodes the images in a folder; those decoded before, unchanged since, are not read again.

    Args:
        groups: (Y target classes, A protected values).

    Raises:
        AimfairError: there is no such folder, it has neither layout, or an image is of a group that does not exist.
        Interrupted: as ``interrupt`` says.
    """
    try:
        images, ignored, manifest = _find(folder, groups)
    except OSError as error:  # such as an unreadable folder
        raise AimfairError(explain(error, {folder: "generate.folder"})) from error
    files = [one.file for one in images]
    reader: Reader = Folder(folder) if manifest is None else manifest.source
    stamps = dict(_stamps(folder, files))
    decoded = decode_files(
        reader, files, _SMALL, min(data.max_pixels, MAX_PIXELS), log=log, progress=progress, interrupt=interrupt
    )
    rejected = {name: UNREADABLE for name, _ in decoded.rejected}
    digests = {files[number]: digest for number, digest in zip(decoded.kept, decoded.digests, strict=True)}
    by_digest: dict[str, list[Found]] = {}
    for one in images:
        if one.file in digests:
            by_digest.setdefault(digests[one.file], []).append(one)
    for equal in by_digest.values():
        if len({one.group for one in equal}) > 1:
            rejected |= {one.file: TWO_GROUPS for one in equal}
        else:
            rejected |= {one.file: COPY for one in equal[1:]}
    return Source(folder, tuple(images), stamps, tuple(ignored), digests, decoded.rejected, rejected, reader)


def missing(folder: Path) -> ConfigError:
    return ConfigError(f"generate.folder: found {folder}, which is not a folder, expected one with images")


def stamp(folder: Path, file: str) -> tuple[int, int]:
    """As in :attr:`Source.stamps`; of the tar file that an image is in."""
    tar = file.rpartition("/")[0]
    try:
        status = (folder / (tar if tar.endswith(TAR) else file)).stat()
    except OSError:
        return -1, 0
    return status.st_size, status.st_mtime_ns


def _stamps(folder: Path, files: Sequence[str]) -> Iterator[tuple[str, tuple[int, int]]]:
    of_tars: dict[str, tuple[int, int]] = {}
    for file in files:
        tar = file.rpartition("/")[0]
        if not tar.endswith(TAR):
            yield file, stamp(folder, file)
        else:
            of_tars[tar] = of_tars.get(tar) or stamp(folder, file)
            yield file, of_tars[tar]


def _find(folder: Path, groups: tuple[int, int]) -> tuple[list[Found], list[str], Manifest | None]:
    """The images, sorted by file, the names that belong to no group, and the manifest if there is one. No image is
    opened."""
    if not folder.is_dir():
        raise missing(folder)
    manifest: Manifest | None = Manifest(folder)
    assert manifest is not None
    if manifest.path.exists():
        facts = {field.name for field in fields(Found)}
        records = [one for one in manifest.records.values() if HELD_OUT not in one.sets]
        images, ignored = [Found(**one.model_dump(include=facts)) for one in records], list[str]()
    else:
        images, ignored = _in_group_folders(folder)
        manifest = None
    images.sort(key=lambda one: one.file)
    for one in images:
        if one.y >= groups[0] or one.a >= groups[1]:
            raise AimfairError(
                f"{folder / one.file}: found group (y={one.y}, a={one.a}), expected y below {groups[0]} (classes, see"
                f" data.majority) and a below {groups[1]} (lists of prompts.protected)"
            )
    if not images:
        near = [one for one in (folder.parent, folder / "synthetic") if (one / MANIFEST).exists()]
        hint = f"; did you mean {near[0]}?" if near else ""
        names = ", ".join(f"{y}_{a}" for y in range(groups[0]) for a in range(groups[1]))
        raise AimfairError(
            f"generate.folder: {folder} has no images, expected them in folders {names}, or a manifest.jsonl of"
            f" aimfair{hint}"
        )
    return images, ignored, manifest


def _in_group_folders(folder: Path) -> tuple[list[Found], list[str]]:
    """As :func:`_find`. Files whose names begin with a dot, or lack a suffix of JPEG, PNG or WebP, are not images."""
    found: list[Found] = []
    ignored = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        group = _GROUP.fullmatch(entry.name)
        if group is None or not entry.is_dir():
            if entry.is_dir() or entry.name.lower().endswith(IMAGE_SUFFIXES):
                ignored.append(entry.name)
            continue
        found += [
            Found(f"{entry.name}/{file}", int(group[1]), int(group[2]))
            for file in image_files(entry)
            if not PurePosixPath(file).name.startswith(".")
        ]
    return found, ignored
