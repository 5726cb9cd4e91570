"""Finds the files that a table names, also where their names on disk are spelled in another way."""

import os
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from aimfair.data.catalogue import IMAGE_SUFFIXES, relative_file
from aimfair.data.spellings import distinct, folded_unicode


class Files:
    """The files below ``root``.

    Tables from other systems name files in another Unicode form or case, or with backslashes.

    Attributes:
        respelled: path in the table -> path on disk, where they differ.
    """

    def __init__(self, root: Path):
        self.respelled: dict[str, str] = {}
        self._root = root
        self._folders: dict[str, _Folder] = {}

    def find(self, text: str, within: str = "") -> str:
        """The file that ``text`` names, relative to ``root``: as it is written or, if there is none, the only one whose
        path differs in case, Unicode form or backslashes. Without any, as it is written.

        Args:
            within: the folder that ``text`` is relative to, with a "/" at its end, unless that is ``root``.

        Raises:
            ValueError: ``text`` is no path inside the folder, may mean several files, or has another suffix than the
                file; with that reason.
        """
        path = within + relative_file(text)
        folder, slash, name = path.rpartition("/")
        if name in self._folder(folder + slash).names:
            return path
        also = within + relative_file(text.replace("\\", "/"))
        *above, name = map(folded_unicode, also.split("/"))
        folders = self._folders_alike(above)
        there = sorted(inner + found for inner in folders for found in self._folder(inner).by_fold.get(name, []))
        if also in there:
            there = [also]
        if len(there) > 1:
            several = " and ".join(distinct(there[:2]))
            raise ValueError(f"found no file {text!r}, but {several}: write the name as it is on disk")
        if not there:
            stem = _stem(name)
            if others := sorted(one + found for one in folders for found in self._folder(one).by_stem.get(stem, [])):
                raise ValueError(f"found no file {text!r}, but {others[0]!r}: write the suffix as it is on disk")
            return path
        self.respelled[path] = there[0]
        return there[0]

    @property
    def notes(self) -> list[str]:
        """A line about what was respelled, if anything was."""
        if not self.respelled:
            return []
        written, found = distinct(next(iter(self.respelled.items())))
        return [
            f"{self._root}: {len(self.respelled):,} files are named in another way on disk (case, Unicode form, or /"
            f" for backslashes), for example {found} for {written}"
        ]

    def _folder(self, path: str) -> "_Folder":
        """A folder below the root, with a "/" at its end, listed once; "" is the root."""
        if path not in self._folders:
            self._folders[path] = _Folder(self._root / path)
        return self._folders[path]

    def _folders_alike(self, parts: Sequence[str]) -> list[str]:
        """The folders, each with a "/" at its end, whose paths have these folded parts."""
        found = [""]
        for part in parts:
            found = [f"{one}{name}/" for one in found for name in self._folder(one).by_fold.get(part, [])]
        return found


class _Folder:
    """The names in a folder; none if it cannot be listed: whoever opens a file in it is told why."""

    def __init__(self, path: Path):
        try:
            self.names = set(os.listdir(path))
        except OSError:
            self.names = set()

    @cached_property
    def by_fold(self) -> dict[str, list[str]]:
        """By name without case and Unicode form."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for name in self.names:
            found[folded_unicode(name)].append(name)
        return found

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        """The images by their name without case, Unicode form and suffix."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for fold, names in self.by_fold.items():
            if fold.endswith(IMAGE_SUFFIXES):
                found[_stem(fold)] += names
        return found


def _stem(path: str) -> str:
    """Without a suffix of images."""
    return next((path.removesuffix(suffix) for suffix in IMAGE_SUFFIXES if path.endswith(suffix)), path)
