"""Images decoded on access, with every core."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from aimfair.base.errors import AimfairError
from aimfair.data import decode
from aimfair.data.sources import Source

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_MAX_WORKERS = 16  # each may hold a whole image of data.max_pixels


class Encoded:
    """The images ``files`` of a source as pixels, uint8 [N, S, S, 3], which are decoded whenever they are read.

    Args:
        size: S.
        max_pixels, fit: as in :func:`aimfair.data.decode.decode`.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, source: Source, files: Sequence[str], size: int, max_pixels: int, fit: decode.Fit):
        self._source, self._files = source, files
        self._max_pixels, self._fit = max_pixels, fit
        self.shape = (len(files), size, size, 3)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, key: Any, /) -> npt.NDArray[np.uint8]:
        numbers = np.arange(len(self))[key]
        if numbers.ndim == 0:
            return self._decode(int(numbers))
        out = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        for place, pixels in enumerate(map_in_order(self._decode, numbers.tolist())):
            out[place] = pixels
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """All of them, in memory."""
        if copy is False:
            raise ValueError("encoded images cannot become an array without a copy")
        return np.asarray(self[:], dtype=dtype)

    def _decode(self, number: int) -> npt.NDArray[np.uint8]:
        try:
            image = self._source.read_rgb(self._files[number], self._max_pixels)
        except decode.ImageError as error:
            raise AimfairError(f"{error}; it could be decoded when the run began: was it changed?") from error
        return decode.fit(image, self.shape[1], self._fit)


def map_in_order(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Generator[_Result]:
    """``map`` over threads (Pillow releases the GIL while it decodes), a bounded number of results ahead."""
    workers = min(os.cpu_count() or 1, _MAX_WORKERS)
    waiting: deque[Future[_Result]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) == 8 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
