"""The processes that share one job, as torchrun starts them.

They exchange texts through the key-value store that torchrun keeps for them, and ask it again and again while they
wait: so a signal, or word of another one's failure, ends the waiting, which a collective operation would sit through.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Self

from aimfair.base.errors import AimfairError, ConfigError
from aimfair.base.interrupt import NEVER, Interrupt, Interrupted

_SECONDS_TO_JOIN = 300
_HOURS_TO_MEET = 48.0  # the slowest process may have so many hours more to do in a round than the fastest
_SECONDS_BETWEEN_LOOKS = 0.05
_LONGEST = 2**22  # bytes of a value; the store drops who sends more than twice that
_FAILED, _LEFT, _ADVANCED = "failed", "left", "advanced"


class Ranks:
    """One of the processes, and its way to the others. To be entered: whatever ends this one, ends the others.

    Args:
        rank: in [0, size); 0 holds the lock of the run and writes its records.
        size: number of processes.
        store: a store of torch.distributed that all of them see; None for a process that is alone.
        interrupt: ends waiting.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None, interrupt: Interrupt = NEVER):
        self.rank, self.size = rank, size
        self._store, self._interrupt = store, interrupt
        self._meetings = 0

    @classmethod
    def join(cls, interrupt: Interrupt) -> Self:
        """Those of the environment, once the store is there.

        Raises:
            AimfairError: the environment is not that of torchrun, or the store cannot be reached.
        """
        size = processes()
        if size == 1:
            return cls(interrupt=interrupt)
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        try:
            store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=_SECONDS_TO_JOIN)))
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise AimfairError(f"WORLD_SIZE is {size}, but the processes do not find each other: {reason}") from error
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun keeps the store when it starts them anew
        return cls(rank, size, PrefixStore(f"aimfair/{attempt}", store), interrupt)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self.size == 1:
            return
        if error is not None:
            with contextlib.suppress(RuntimeError):  # the store may be gone, and the error is what matters
                said = {"rank": self.rank, "error": str(error), "exit_code": getattr(error, "exit_code", 1)}
                self._store.set(_FAILED, json.dumps(said))
        elif self.rank > 0:
            self._store.set(f"{_LEFT}/{self.rank}", "")
        else:  # the store may live in this process, which must leave last
            self._wait_for([f"{_LEFT}/{rank}" for rank in range(1, self.size)], lambda: None)

    def gather(self, text: str, waiting: Callable[[], None] = lambda: None) -> list[str]:
        """The texts of all processes, by rank, once each has come here.

        Args:
            waiting: called again and again meanwhile.

        Raises:
            AimfairError: another process failed, or none came for two days.
            Interrupted: this process, or another one, was asked to stop.
        """
        if self.size == 1:
            return [text]
        self._meetings += 1
        self._put(f"{self._meetings}/{self.rank}", text.encode())
        keys = [f"{self._meetings}/{rank}" for rank in range(self.size)]
        self._wait_for(keys, waiting)
        return [self._get(key).decode() for key in keys]

    def _put(self, key: str, data: bytes) -> None:
        """In parts, and last under ``key`` how many there are."""
        parts = [data[start : start + _LONGEST] for start in range(0, len(data), _LONGEST)]
        for number, part in enumerate(parts):
            self._store.set(f"{key}/{number}", part)
        self._store.set(key, str(len(parts)))

    def _get(self, key: str) -> bytes:
        return b"".join(self._store.get(f"{key}/{number}") for number in range(int(self._store.get(key))))

    def _wait_for(self, keys: list[str], waiting: Callable[[], None]) -> None:
        end = time.monotonic() + _HOURS_TO_MEET * 3600
        while not self._has(keys):
            self._interrupt.check()
            if self._has([_FAILED]):
                _raise_as(json.loads(self._store.get(_FAILED)))
            if time.monotonic() > end:
                raise AimfairError(f"process {self.rank} of {self.size} waited {_HOURS_TO_MEET:g} hours for the others")
            waiting()
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _has(self, keys: list[str]) -> bool:
        try:
            return bool(self._store.check(keys))
        except RuntimeError as error:  # it was kept by torchrun, or by rank 0, and went with them
            raise AimfairError(f"process {self.rank} of {self.size} has lost the others") from error

    def advance(self, round: int, steps: int) -> int:
        """Adds ``steps``, which may be none, to what all have done in this round; the sum, 0 for a process alone."""
        if self.size > 1:
            with contextlib.suppress(RuntimeError):  # the others are gone: to be said where their results are needed
                return int(self._store.add(f"{_ADVANCED}/{round}", steps))
        return 0


ALONE = Ranks()


def processes() -> int:
    """How many there are, by the environment.

    Raises:
        ConfigError: WORLD_SIZE is no number above 0.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"WORLD_SIZE: found {text!r}, expected the number of processes, as torchrun sets it")
    return int(text)


def rank_here() -> int:
    """The number of this process, by the environment.

    Raises:
        ConfigError: there are several processes, and RANK is none of their numbers.
    """
    size, text = processes(), os.environ.get("RANK", "")
    if size == 1:
        return 0
    if not text.isdecimal() or int(text) >= size:
        raise ConfigError(f"RANK: found {text!r}, expected a number below WORLD_SIZE ({size}), as torchrun sets it")
    return int(text)


def _raise_as(said: dict[str, Any]) -> None:
    if said["exit_code"] > 128:
        raise Interrupted(said["exit_code"] - 128)
    raise AimfairError(f"process {said['rank']} failed, and so the others stop: {said['error']}")
