"""A folder that every process must see, with the same software."""

import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from aimfair.base.errors import AimfairError
from aimfair.base.files import write_text
from aimfair.base.ranks import program

_FOLDER, _TOKEN = ".workers", "token"


@dataclass(frozen=True)
class Shared:
    """A folder as the process that wrote the token sees it; sent to the others, which compare.

    Attributes:
        software: that results depend on, with versions.
    """

    path: Path
    token: str
    software: str

    def check(self) -> None:
        """Raises AimfairError: this process sees another folder, or has other software."""
        host = socket.gethostname()
        try:
            found = (self.path / _FOLDER / _TOKEN).read_text(encoding="utf-8")
        except OSError:
            found = None
        if found != self.token:
            fault = "is not there" if found is None else "is another one"
            raise AimfairError(
                f"{self.path}: on {host} this folder {fault}; all machines of the cluster need the same files under the"
                " same path, for example on NFS"
            )
        if (here := software()) != self.software:
            raise AimfairError(f"{host}: found {here}, expected {self.software}, as where the run was started")

    def lock(self, name: str) -> Path:
        """The file whose lock a process holds while it does the work of this name."""
        return self.path / _FOLDER / f"{name.replace('/', '-')}.lock"


@contextmanager
def shared(path: Path) -> Iterator[Shared]:
    """The folder, marked for others until the end."""
    folder = path / _FOLDER
    folder.mkdir(exist_ok=True)
    mark = Shared(path, uuid.uuid4().hex, software())
    write_text(folder / _TOKEN, mark.token)
    try:
        yield mark
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@cache
def software() -> str:
    return ", ".join(f"{name} {version.partition('+')[0]}" for name, version in program().items())
