"""Finds the files that a table names, also where their names on disk are spelled in another way."""

import os
from collections import defaultdict
from functools import cached_property
from pathlib import Path, PurePosixPath

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
        self._names: dict[str, set[str]] = {}

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
        folder, _, name = path.rpartition("/")
        if name in self._listed(folder):
            return path
        also = within + relative_file(text.replace("\\", "/"))
        there = self._by_fold.get(folded_unicode(also), [])
        if also in there:
            there = [also]
        if len(there) > 1:
            several = " and ".join(distinct(there[:2]))
            raise ValueError(f"found no file {text!r}, but {several}: write the name as it is on disk")
        if not there:
            if others := self._by_stem.get(_stem(folded_unicode(also))):
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

    def _listed(self, folder: str) -> set[str]:
        if folder not in self._names:
            try:
                self._names[folder] = set(os.listdir(self._root / folder))
            except OSError:  # whoever opens the file is told why
                self._names[folder] = set()
        return self._names[folder]

    @cached_property
    def _by_fold(self) -> dict[str, list[str]]:
        """Path without case and Unicode form -> the files of that path."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for folder, _, names in os.walk(self._root):
            inside = PurePosixPath(Path(folder).relative_to(self._root).as_posix())
            for path in (str(inside / name) for name in names):
                found[folded_unicode(path)].append(path)
        return {fold: sorted(paths) for fold, paths in found.items()}

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        """The images by their path without case, Unicode form and suffix."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for fold, paths in self._by_fold.items():
            if fold.endswith(IMAGE_SUFFIXES):
                found[_stem(fold)] += paths
        return found


def _stem(path: str) -> str:
    """Without a suffix of images."""
    return next((path.removesuffix(suffix) for suffix in IMAGE_SUFFIXES if path.endswith(suffix)), path)
