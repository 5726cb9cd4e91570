"""Base classes of the settings and of the JSON files that aimfair writes."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, TypeGuard
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, PlainValidator, ValidationError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


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


def _absolute_or_url(place: Any) -> Path | str:
    if not isinstance(place, str | Path):
        raise ValueError("expected a folder or a URL")
    return _checked_url(place) if is_url(place) else _absolute(Path(place))


def _checked_url(url: str) -> str:
    """
    Raises:
        ValueError: the URL holds a user, a password or a query; which is not repeated.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query:
        raise ValueError("expected a URL without user, password or query: credentials belong into the environment")
    return url


def is_url(name: object) -> TypeGuard[str]:
    """Whether it is a URL, such as s3://bucket/folder, and no path."""
    return isinstance(name, str) and _URL.match(name) is not None


def _url(name: str) -> str:
    if not is_url(name):
        raise ValueError(f"found {name!r}, expected a URL, such as s3://bucket/folder")
    return _checked_url(name)


def _absolute_if_folder(name: str) -> str:
    """A folder begins as a path, so that the meaning of a name does not depend on which folders exist."""
    if is_url(name):
        return _checked_url(name)
    return str(_absolute(Path(name))) if name.startswith(("/", "./", "../", "~/")) else name


Folder = Annotated[Path, AfterValidator(_absolute)]
FolderOrUrl = Annotated[Path | str, PlainValidator(_absolute_or_url)]
Url = Annotated[str, AfterValidator(_url)]
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
