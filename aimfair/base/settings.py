"""Base classes of the settings and of the JSON files that aimfair writes."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError


class Problem(ValueError):
    """A setting that is wrong in combination with others.

    Args:
        key: of the setting, relative to the node that raises.
    """

    def __init__(self, key: tuple[str | int, ...], message: str):
        super().__init__(message)
        self.key = key


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path.expanduser()))


def _absolute_if_folder(name: str) -> str:
    """A folder begins as a path, so that the meaning of a name does not depend on which folders exist."""
    return str(_absolute(Path(name))) if name.startswith(("/", "./", "../", "~/")) else name


Folder = Annotated[Path, AfterValidator(_absolute)]
FolderOrName = Annotated[str, AfterValidator(_absolute_if_folder)]


class Record(BaseModel):
    """A part of a JSON file: exactly its fields, which never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Settings(Record):
    """A node of the settings: a record without NaN and infinity."""

    model_config = ConfigDict(allow_inf_nan=False, protected_namespaces=())


def first_fault(error: ValidationError, whole: str = "") -> str:
    """The first fault in one line, as "field: what is wrong"; ``whole`` is the field of what is no object at all."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"])) or whole
    return f"{field}: {first['msg']}" if field else first["msg"]


def require_words(key: tuple[str | int, ...], words: list[str]) -> None:
    """Raises Problem unless these can be words of prompts."""
    if not words or any(not word.strip() or not word.isprintable() for word in words):
        raise Problem(
            key, f"found {words!r}, expected at least one string, none of them blank or with control characters"
        )
