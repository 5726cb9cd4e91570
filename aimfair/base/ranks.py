"""The processes that share one job, as started by torchrun.

They exchange strings through torchrun's key-value store and poll it while they wait, so that a signal or the failure of
another process ends the wait. Tensors go through ``torch.distributed``, once :meth:`Ranks.connect` was called; the
store tells which process is the reason when a collective operation fails there.
"""

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from aimfair.base.errors import AimfairError, ConfigError
from aimfair.base.interrupt import NEVER, Interrupt, Interrupted
from aimfair.base.watch import Watch

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_SECONDS_TO_JOIN = 300
_HOURS_TO_MEET = 48.0  # the slowest process may take so many hours longer for a round than the fastest
_SECONDS_BETWEEN_POLLS = 0.001, 0.05  # at first, and after a while
_SECONDS_TO_DISCONNECT = 10.0
_LONGEST = 2**22  # bytes of a value; the store closes connections that send more than twice that
_FAILED, _LEFT, _ADVANCED = "failed", "left", "advanced"


class OtherProcessError(AimfairError):
    """Another process failed, or is lost; it names that process."""


class Ranks:
    """One of the processes, and its connection to the others. A context manager: an error in one process ends all.

    Args:
        rank: in [0, size); 0 holds the lock of the run and writes its records.
        size: number of processes.
        store: a store of torch.distributed shared by all; None for a single process.
        interrupt: ends waiting.
        watch: notices processes that are lost; None: nothing does.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        store: Any = None,
        interrupt: Interrupt = NEVER,
        watch: Watch | None = None,
    ):
        self.rank, self.size, self.interrupt = rank, size, interrupt
        self._store, self._watch = store, watch
        self._meetings = 0
        self._connected = False

    @classmethod
    def join(cls, interrupt: Interrupt) -> Self:
        """The processes that the environment describes, once the store is reachable.

        Raises:
            AimfairError: the environment is not torchrun's, the store cannot be reached, or the processes run different
                versions of this package or of torch.
            ConfigError: torchrun has restarted them after a setting that cannot be used.
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
        if refusal := _refusal_before(store, int(attempt)):
            raise refusal
        prefix = f"aimfair/{attempt}"
        watch = Watch(rank, size, PrefixStore(f"{prefix}/watch", store.clone()))
        ranks = cls(rank, size, PrefixStore(prefix, store), interrupt, watch)
        ranks.require_same(program(), "install the same everywhere")
        return ranks

    @property
    def leads(self) -> bool:
        """Whether this process holds the run."""
        return self.rank == 0

    def __enter__(self) -> Self:
        if self._watch is not None:
            self._watch.start(self._failure)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self.size == 1:
            return
        try:
            self._leave(error)
        finally:
            if self._watch is not None:
                self._watch.stop()
            if self._connected:
                self._disconnect()

    def _leave(self, error: BaseException | None) -> None:
        if isinstance(error, OtherProcessError):
            return
        if error is None:
            if self.rank > 0:
                self._store.set(f"{_LEFT}/{self.rank}", "")
            else:  # the store may live in this process, which must leave last
                self._wait_for([f"{_LEFT}/{rank}" for rank in range(1, self.size)], lambda: None)
            return
        if self._connected and isinstance(error, RuntimeError):
            self.explain(error)
        with contextlib.suppress(RuntimeError):  # the store may be gone; the error is what matters
            failure = {"rank": self.rank, "error": str(error), "exit_code": getattr(error, "exit_code", 1)}
            self._store.set(_FAILED, json.dumps(failure))

    # -- strings -----------------------------------------------------------------------------------------------------

    def gather(self, text: str, waiting: Callable[[], None] = lambda: None) -> list[str]:
        """The strings of all processes, by rank, once each of them has called this.

        Args:
            waiting: called at every poll.

        Raises:
            AimfairError: another process failed, is lost, or took two days longer.
            Interrupted: this process or another one was asked to stop.
        """
        if self.size == 1:
            return [text]
        self._count()
        self._meetings += 1
        self._put(f"{self._meetings}/{self.rank}", text.encode())
        keys = [f"{self._meetings}/{rank}" for rank in range(self.size)]
        self._wait_for(keys, waiting)
        return [self._get(key).decode() for key in keys]

    def of_first(self, make: Callable[[], str]) -> str:
        """What ``make`` returns in process 0, which alone calls it."""
        return self.gather(make() if self.leads else "")[0]

    def meet(self) -> None:
        """Returns once every process has called this."""
        self.gather("")

    def require_same(self, facts: Mapping[str, str], advice: str) -> None:
        """Called by every process, with what must be equal in all of them.

        Raises:
            AimfairError: in every process, with the first fact that differs.
        """
        if self.size == 1:
            return
        first, *others = (json.loads(text) for text in self.gather(json.dumps(dict(facts))))
        for rank, other in enumerate(others, 1):
            for name in {**first, **other}:
                if first.get(name) != other.get(name):
                    raise AimfairError(
                        f"process 0 and process {rank} differ in {name}: {first.get(name)}, {other.get(name)}; {advice}"
                    )

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
        pause, longest = _SECONDS_BETWEEN_POLLS
        while not self._has(keys):
            self.interrupt.check()
            if (failure := self._failure()) and not self._has(keys):  # it may have failed after it came here
                raise failure
            if self._watch is not None and (lost := self._watch.lost()):
                raise OtherProcessError(lost)
            if time.monotonic() > end:
                raise AimfairError(f"process {self.rank} of {self.size} waited {_HOURS_TO_MEET:g} hours for the others")
            waiting()
            time.sleep(pause)
            pause = min(pause * 1.5, longest)

    def _has(self, keys: list[str]) -> bool:
        try:
            return bool(self._store.check(keys))
        except RuntimeError as error:  # it lived in torchrun or rank 0, and ended with it
            raise self._lost_connection() from error

    def _failure(self) -> AimfairError | None:
        """Of another process."""
        if not self._has([_FAILED]):
            return None
        failure = json.loads(self._store.get(_FAILED))
        if failure["rank"] == self.rank:
            return None
        if failure["exit_code"] > 128:
            return Interrupted(failure["exit_code"] - 128)
        return OtherProcessError(f"process {failure['rank']} failed, so the others stop: {failure['error']}")

    def advance(self, round: int, steps: int) -> int:
        """Adds ``steps``, possibly 0, to what all processes have done in this round; the sum, or 0 if it is lost."""
        with contextlib.suppress(RuntimeError):  # the others are gone, which gather() reports
            return int(self._store.add(f"{_ADVANCED}/{round}", steps))
        return 0

    # -- tensors -----------------------------------------------------------------------------------------------------

    def connect(self, device: "torch.device", minutes: float) -> None:
        """Prepares collective operations on tensors of the CPU and of ``device``; every process calls it.

        A process group that is there already is used.

        Args:
            minutes: after which an operation that another process does not join fails.
        """
        if self.size == 1 or self._connected:
            return
        import torch.distributed as dist

        if dist.is_initialized():
            return
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        timeout = timedelta(minutes=minutes)
        with self.explained():
            dist.init_process_group(backend, store=self._store, rank=self.rank, world_size=self.size, timeout=timeout)
        self._connected = True

    def _disconnect(self) -> None:
        """Waits for a while only: after a failure, operations of NCCL may never end."""
        import torch.distributed as dist

        def destroy() -> None:
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()

        thread = threading.Thread(target=destroy, daemon=True)
        thread.start()
        thread.join(_SECONDS_TO_DISCONNECT)

    def sum(self, values: "Tensor") -> "Tensor":
        """The sum over the processes, in place; the same bits in all of them."""
        if self.size > 1:
            import torch.distributed as dist

            self._count()
            with self.explained():
                dist.all_reduce(values)
        return values

    def concatenate(self, part: "Tensor", lengths: Sequence[int]) -> "Tensor":
        """The parts of all processes, in their order.

        Args:
            part: [lengths[rank], ...].
            lengths: of all processes; the other dimensions are the same.
        """
        if self.size == 1:
            return part
        import torch
        import torch.distributed as dist

        self._count()
        padded = part.new_zeros((max(lengths), *part.shape[1:]))
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in lengths]
        with self.explained():
            dist.all_gather(parts, padded)
        return torch.cat([one[:length] for one, length in zip(parts, lengths, strict=True)])

    def share(self, count: int) -> slice:
        """This process's part of ``count`` items in order; sizes differ by at most one."""
        return self.shares(count)[self.rank]

    def shares(self, count: int) -> list[slice]:
        """The parts of all processes."""
        bounds = [count * rank // self.size for rank in range(self.size + 1)]
        return [slice(*pair) for pair in pairwise(bounds)]

    def explained(self) -> contextlib.AbstractContextManager[None]:
        """Around collective operations: an error that another process is the reason of names that process."""
        return _Explained(self)

    def explain(self, error: RuntimeError) -> None:
        """
        Raises:
            AimfairError: if ``error``, of a collective operation, was caused by the end or silence of another process.
        """
        if self._watch is None:
            return
        try:
            self._raise_the_reason(self._watch, error)
        except RuntimeError:  # of the store
            raise self._lost_connection() from error

    def _raise_the_reason(self, watch: Watch, error: RuntimeError) -> None:
        for _ in watch.soon():
            if failure := self._failure():
                raise failure from error
            self.interrupt.check()
            if lost := watch.lost(soon=True):
                raise OtherProcessError(lost) from error
        if "timed out" in str(error).lower() or "timeout" in str(error).lower():
            raise OtherProcessError(watch.behind()) from error

    def _lost_connection(self) -> OtherProcessError:
        return OtherProcessError(f"process {self.rank} of {self.size} has lost the connection to the others")

    def _count(self) -> None:
        if self._watch is not None:
            self._watch.done += 1

    # -- devices -----------------------------------------------------------------------------------------------------

    def device_name(self, name: str) -> str:
        """The device that a setting names for this process: each of several takes the GPU of its number on its machine.

        Raises:
            ConfigError: there are several processes, and ``name`` has an index.
        """
        if self.size == 1 or name == "cpu":
            return name
        if ":" in name:
            raise ConfigError(f"device: found {name}, expected auto, cpu or cuda: each process has its own GPU")
        import torch

        if name == "auto" and not torch.cuda.is_available():
            return "cpu"
        return f"cuda:{os.environ.get('LOCAL_RANK', self.rank)}"


def _refusal_before(store: Any, attempt: int) -> ConfigError | None:
    """The setting for which the processes ended that torchrun has started again, which it does after any error."""
    from torch.distributed.distributed_c10d import PrefixStore

    for earlier in range(attempt):
        prefixed = PrefixStore(f"aimfair/{earlier}", store)
        if (
            prefixed.check([_FAILED])
            and (failure := json.loads(prefixed.get(_FAILED)))["exit_code"] == ConfigError.exit_code
        ):
            return ConfigError(failure["error"])
    return None


class _Explained(contextlib.AbstractContextManager[None]):
    def __init__(self, ranks: Ranks):
        self._ranks = ranks

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._ranks.size > 1 and isinstance(error, RuntimeError):
            self._ranks.explain(error)


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


def program() -> dict[str, str]:
    """What decides the results besides settings and data: versions, and a digest of this package."""
    import torch

    import aimfair

    digest = hashlib.sha256()
    package = Path(aimfair.__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode())
        digest.update(path.read_bytes())
    return {"torch": torch.__version__, "aimfair": f"{aimfair.__version__} ({digest.hexdigest()[:12]})"}
