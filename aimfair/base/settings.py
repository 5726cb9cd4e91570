"""What every node of the settings is made of."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class Problem(ValueError):
    """A setting that only another one makes wrong.

    Args:
        key: where it is, seen from the node that found it.
    """

    def __init__(self, key: tuple[str | int, ...], message: str):
        super().__init__(message)
        self.key = key


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path.expanduser()))


def _absolute_if_folder(name: str) -> str:
    """Folders are told from names by how they begin, so that nothing depends on which folders happen to exist."""
    return str(_absolute(Path(name))) if name.startswith(("/", "./", "../", "~/")) else name


Folder = Annotated[Path, AfterValidator(_absolute)]
FolderOrName = Annotated[str, AfterValidator(_absolute_if_folder)]


class Settings(BaseModel):
    """A node of the tree: unknown keys, NaN and infinity are refused, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


def require_words(key: tuple[str | int, ...], words: list[str]) -> None:
    """Raises Problem unless these can be words of prompts."""
    if not words or any(not word.strip() or not word.isprintable() for word in words):
        raise Problem(
            key, f"found {words!r}, expected at least one text, none of them blank or with control characters"
        )
