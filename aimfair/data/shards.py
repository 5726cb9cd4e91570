"""Data sets with many images in a file, ``data.kind`` webdataset and parquet: the files, and a catalogue of the images.

An image is named ``<file>/<name in it>``. Images are in the order of their names and each can be read at any time, so
splits, biased subsets and batches are drawn as from single files.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from aimfair.base.errors import AimfairError, ConfigError
from aimfair.base.storage import Status, Storage, files_in
from aimfair.data import entries
from aimfair.data.catalogue import SPLITS, Catalogue, refuse_synonyms
from aimfair.data.settings import SHARDS, DataSettings
from aimfair.data.sources import Source
from aimfair.data.spellings import SPLIT, Spellings


class Shard(NamedTuple):
    """A file of many images.

    Attributes:
        name: path relative to the root, with "/".
        split: number of the split that ``data.shards`` gives it.
        status: differs once it has changed.
    """

    name: str
    split: int | None
    status: Status


Root = Path | Storage

Row = tuple[str, tuple[str, ...] | str]
"""Name of an image, and its values of :func:`columns` or the reason why it is unusable."""


def find(root: Root, settings: DataSettings) -> list[Shard]:
    """The files of the data set, sorted so that the names of all images are, too.

    Raises:
        ConfigError: a pattern of ``data.shards`` matches no file, or two match one.
        AimfairError: there is no file.
    """
    suffix = SHARDS[settings.kind]
    there = {name: status for name, status in files_in(root).items() if not PurePosixPath(name).name.startswith("._")}
    splits: dict[str, int | None] = {}
    if settings.shards is None:
        splits = dict.fromkeys(_matching(there, f"**/*{suffix}"))
        if not splits:
            raise AimfairError(f"{root}: found no file that ends in {suffix}, as data.kind {settings.kind} needs")
    for split, pattern in (settings.shards or {}).items():
        found = _matching(there, pattern)
        if not found:
            raise ConfigError(f"data.shards.{split}: {pattern!r} matches no file in {root}")
        for name in found:
            if name in splits:
                raise ConfigError(f"data.shards.{split}: {name} also belongs to another split")
            splits[name] = SPLITS.index(split)
    shards = [Shard(name, split, there[name]) for name, split in splits.items()]
    return sorted(shards, key=lambda shard: f"{shard.name}/")


def place(root: Root) -> str:
    """The folder of the data set, the same from wherever it is named."""
    return root.url if isinstance(root, Storage) else str(root.resolve())


def _matching(names: Iterable[str], pattern: str) -> list[str]:
    """As ``Path.glob``: "**/" is any number of folders, and "*" ends at a "/"."""
    parts = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    regex = re.compile("".join(parts.get(part, re.escape(part)) for part in re.split(r"(\*\*/|\*|\?)", pattern)))
    return [name for name in names if regex.fullmatch(name)]


def columns(settings: DataSettings) -> list[tuple[str, str]]:
    """(setting, name) of the columns to read: the attributes', then that of clusters, then that of splits."""
    found = [(key, name) for name, key in settings.roles().items()]
    if settings.group_column is not None:
        found.append(("data.group_column", settings.group_column))
    if settings.shards is None and settings.split_column is not None:
        found.append(("data.split_column", settings.split_column))
    return found


def catalogue(
    root: Root, settings: DataSettings, rows: Sequence[tuple[Shard, Iterator[Row]]], source: Source
) -> Catalogue:
    """The images of all shards.

    Args:
        rows: of each shard.
        source: reads them.

    Raises:
        AimfairError, ConfigError: as :func:`aimfair.data.entries.catalogue`.
    """
    names: Counter[str] = Counter()
    listing = f"*{SHARDS[settings.kind]}"
    return entries.catalogue(
        settings,
        root,
        listing,
        _entries(settings, rows, names, str(root / listing)),
        has_splits=settings.shards is not None or settings.split_column is not None,
        spellings=Spellings.of(SPLIT, str(settings.split_column), names),
        shards=source,
    )


def _entries(
    settings: DataSettings, rows: Sequence[tuple[Shard, Iterator[Row]]], names: Counter[str], where: str
) -> Iterator[tuple[str, entries.Entry | str]]:
    """The entry of each row, or the reason why it is unusable.

    Args:
        names: counts the names of splits.
    """
    checked = lru_cache(2**16)(partial(_checked, settings))  # few rows have labels that no other has
    for shard, of_shard in rows:
        for name, cells in of_shard:
            one = cells if isinstance(cells, str) else checked(cells, shard.split)
            if isinstance(one, str):
                yield name, one
                continue
            if shard.split is None and settings.split_column is not None:
                names[cells[-1]] += 1
            yield name, entries.Entry(one.split, name, one.values, one.cluster)
    refuse_synonyms(names, where)


def _checked(settings: DataSettings, cells: tuple[str, ...], split: int | None) -> entries.Entry | str:
    """The entry of an image with these values, without its name, or the reason why it is unusable."""
    values = list(cells)
    try:
        if split is None:
            split = 0 if settings.split_column is None else entries.split_of(values.pop())
        cluster = None if settings.group_column is None else values.pop()
        return entries.entry(settings, split, "", values, cluster)
    except ValueError as error:
        return str(error)
