"""The processes that share one job, as started by torchrun.

They exchange strings through torchrun's key-value store and poll it while they wait, so that a signal or the failure of
another process ends the wait, which a collective operation would not notice.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from aimfair.base.errors import AimfairError, ConfigError
from aimfair.base.interrupt import NEVER, Interrupt, Interrupted

if TYPE_CHECKING:
    import torch

_SECONDS_TO_JOIN = 300
_HOURS_TO_MEET = 48.0  # the slowest process may take so many hours longer for a round than the fastest
_SECONDS_BETWEEN_POLLS = 0.05
_LONGEST = 2**22  # bytes of a value; the store closes connections that send more than twice that
_FAILED, _LEFT, _ADVANCED = "failed", "left", "advanced"


class Ranks:
    """One of the processes, and its connection to the others. A context manager: an error in one process ends all.

    Args:
        rank: in [0, size); 0 holds the lock of the run and writes its records.
        size: number of processes.
        store: a store of torch.distributed shared by all; None for a single process.
        interrupt: ends waiting.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None, interrupt: Interrupt = NEVER):
        self.rank, self.size = rank, size
        self._store, self._interrupt = store, interrupt
        self._meetings = 0

    @classmethod
    def join(cls, interrupt: Interrupt) -> Self:
        """The processes that the environment describes, once the store is reachable.

        Raises:
            AimfairError: the environment is not torchrun's, or the store cannot be reached.
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
            raise AimfairError(f"WORLD_SIZE is {size}, but the processes cannot find each other: {reason}") from error
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun keeps the store when it restarts them
        return cls(rank, size, PrefixStore(f"aimfair/{attempt}", store), interrupt)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self.size == 1:
            return
        if error is not None:
            with contextlib.suppress(RuntimeError):  # the store may be gone; the error is what matters
                failure = {"rank": self.rank, "error": str(error), "exit_code": getattr(error, "exit_code", 1)}
                self._store.set(_FAILED, json.dumps(failure))
        elif self.rank > 0:
            self._store.set(f"{_LEFT}/{self.rank}", "")
        else:  # the store may live in this process, which must leave last
            self._wait_for([f"{_LEFT}/{rank}" for rank in range(1, self.size)], lambda: None)

    def gather(self, text: str, waiting: Callable[[], None] = lambda: None) -> list[str]:
        """The strings of all processes, by rank, once each of them has called this.

        Args:
            waiting: called at every poll.

        Raises:
            AimfairError: another process failed, or took two days longer.
            Interrupted: this process or another one was asked to stop.
        """
        if self.size == 1:
            return [text]
        self._meetings += 1
        self._put(f"{self._meetings}/{self.rank}", text.encode())
        keys = [f"{self._meetings}/{rank}" for rank in range(self.size)]
        self._wait_for(keys, waiting)
        return [self._get(key).decode() for key in keys]

    def _put(self, key: str, data: bytes) -> None:
        """In parts, and then their number under ``key``."""
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
            time.sleep(_SECONDS_BETWEEN_POLLS)

    def _has(self, keys: list[str]) -> bool:
        try:
            return bool(self._store.check(keys))
        except RuntimeError as error:  # it lived in torchrun or rank 0, and ended with it
            raise AimfairError(f"process {self.rank} of {self.size} has lost the connection to the others") from error

    def advance(self, round: int, steps: int) -> int:
        """Adds ``steps``, possibly 0, to what all processes have done in this round; the sum, or 0 if it is lost."""
        with contextlib.suppress(RuntimeError):  # the others are gone, which gather() reports
            return int(self._store.add(f"{_ADVANCED}/{round}", steps))
        return 0

    def device(self, name: str) -> "torch.device":
        """The device that a setting names; each of several processes takes the GPU of its number on its machine.

        Raises:
            ConfigError: there are several processes, and ``name`` has an index.
        """
        from aimfair.base.device import choose_device

        if self.size > 1 and ":" in name:
            raise ConfigError(f"device: found {name}, expected auto, cpu or cuda: each process has its own GPU")
        device = choose_device(name)
        if self.size > 1 and device.type == "cuda":
            import torch

            device = choose_device(f"cuda:{os.environ.get('LOCAL_RANK', self.rank)}")
            torch.cuda.set_device(device)
        return device


ALONE = Ranks()


def processes() -> int:
    """The number of processes, from the environment.

    Raises:
        ConfigError: WORLD_SIZE is not a positive number.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"WORLD_SIZE: found {text!r}, expected the number of processes, as set by torchrun")
    return int(text)


def rank_here() -> int:
    """The rank of this process, from the environment.

    Raises:
        ConfigError: there are several processes, and RANK is not below their number.
    """
    size, text = processes(), os.environ.get("RANK", "")
    if size == 1:
        return 0
    if not text.isdecimal() or int(text) >= size:
        raise ConfigError(f"RANK: found {text!r}, expected a number below WORLD_SIZE ({size}), as set by torchrun")
    return int(text)


def _raise_as(failure: dict[str, Any]) -> None:
    if failure["exit_code"] > 128:
        raise Interrupted(failure["exit_code"] - 128)
    raise AimfairError(f"process {failure['rank']} failed, so the others stop: {failure['error']}")
