"""Data sets with many images in a file, ``data.kind`` webdataset and parquet: the files, and a catalogue of the images.

An image is named ``<file>/<name in it>``. Images are in the order of their names and each can be read at any time, so
splits, biased subsets and batches are drawn as from single files.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path

from aimfair.base.errors import AimfairError, ConfigError
from aimfair.data import entries
from aimfair.data.catalogue import SPLITS, Catalogue, refuse_synonyms
from aimfair.data.settings import SHARDS, DataSettings
from aimfair.data.sources import Source
from aimfair.data.spellings import SPLIT, Spellings

Shard = tuple[str, int | None]
"""Path relative to the root with "/", and number of the split that ``data.shards`` gives it."""

Row = tuple[str, tuple[str, ...] | str]
"""Name of an image, and its values of :func:`columns` or the reason why it is unusable."""


def find(root: Path, settings: DataSettings) -> list[Shard]:
    """The files of the data set, sorted so that the names of all images are, too.

    Raises:
        ConfigError: a pattern of ``data.shards`` matches no file, or two match one.
        AimfairError: there is no file.
    """
    suffix = SHARDS[settings.kind]
    if settings.shards is None:
        shards: dict[str, int | None] = dict.fromkeys(_matching(root, f"**/*{suffix}"))
        if not shards:
            raise AimfairError(f"{root}: found no file that ends in {suffix}, as data.kind {settings.kind} needs")
    else:
        shards = {}
        for split, pattern in settings.shards.items():
            found = _matching(root, pattern)
            if not found:
                raise ConfigError(f"data.shards.{split}: {pattern!r} matches no file in {root}")
            for name in found:
                if name in shards:
                    raise ConfigError(f"data.shards.{split}: {name} also belongs to another split")
                shards[name] = SPLITS.index(split)
    return sorted(shards.items(), key=lambda shard: f"{shard[0]}/")


def _matching(root: Path, pattern: str) -> list[str]:
    return sorted(
        path.relative_to(root).as_posix()
        for path in root.glob(pattern)
        if path.is_file() and not path.name.startswith("._")
    )


def columns(settings: DataSettings) -> list[tuple[str, str]]:
    """(setting, name) of the columns to read: the attributes', then that of clusters, then that of splits."""
    found = [(key, name) for name, key in settings.roles().items()]
    if settings.group_column is not None:
        found.append(("data.group_column", settings.group_column))
    if settings.shards is None and settings.split_column is not None:
        found.append(("data.split_column", settings.split_column))
    return found


def catalogue(
    root: Path, settings: DataSettings, rows: Sequence[tuple[Shard, Iterator[Row]]], source: Source
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
    for (_, split), of_shard in rows:
        for name, cells in of_shard:
            one = cells if isinstance(cells, str) else checked(cells, split)
            if isinstance(one, str):
                yield name, one
                continue
            if split is None and settings.split_column is not None:
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
