"""Threads that are processes to each other."""

import threading
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from aimfair.base.ranks import Ranks


class Together(Ranks):
    """Exchanges tensors with the other threads."""

    def __init__(self, rank: int, size: int, store: dist.Store, barrier: threading.Barrier, parts: list[Tensor]):
        super().__init__(rank, size, store)
        self._barrier, self._parts = barrier, parts

    def sum(self, values: Tensor) -> Tensor:
        return values.copy_(torch.stack(self._exchange(values.clone())).sum(0))

    def concatenate(self, part: Tensor, lengths: Sequence[int]) -> Tensor:
        assert len(part) == lengths[self.rank]
        return torch.cat(self._exchange(part))

    def _exchange(self, part: Tensor) -> list[Tensor]:
        self._parts[self.rank] = part
        self._barrier.wait(30)
        parts = list(self._parts)
        self._barrier.wait(30)
        return parts


def in_threads(body: Callable[[Ranks], None], size: int = 2) -> list[BaseException | None]:
    """What came of ``body`` in each of several threads that are processes to each other."""
    store, ends = dist.HashStore(), list[BaseException | None]([None] * size)
    barrier, parts = threading.Barrier(size), [torch.empty(0)] * size

    def work(rank: int) -> None:
        try:
            with Together(rank, size, store, barrier, parts) as here:
                body(here)
        except BaseException as error:
            barrier.abort()
            ends[rank] = error

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "it hangs"
    return ends
