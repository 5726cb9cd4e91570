"""Labeled images, the input of every stage."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from aimfair.base.errors import AimfairError
from aimfair.data.catalogue import SPLITS

_IN_DIGEST = 64  # images whose pixels are


class Pixels(Protocol):
    """uint8 [N, H, W, 3], RGB, read on access and never written to: an array, a memory map, or :class:`Rows` of one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> npt.NDArray[np.uint8]:
        """By number, slice or array of numbers."""


@dataclass(frozen=True)
class Rows:
    """Some images of a memory map, in any order, read on access: they may exceed the memory.

    Attributes:
        stored: uint8 [M, H, W, 3].
        indices: int64 [N], which of them.
    """

    stored: Pixels
    indices: npt.NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, 3)."""
        return len(self.indices), *self.stored.shape[1:]

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8."""
        return self.stored.dtype

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: Any, /) -> npt.NDArray[np.uint8]:
        """A copy of the images at ``key``, an index into the N images."""
        chosen: npt.NDArray[np.uint8] = self.stored[self.indices[key]]
        return chosen

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """All of them, in memory."""
        if copy is False:
            raise ValueError("rows of a memory map cannot become an array without a copy")
        return np.asarray(self.stored[self.indices], dtype=dtype)


@dataclass(frozen=True)
class ImageSet:
    """N images of one size with their labels.

    Attributes:
        images: uint8 [N, H, W, 3], RGB.
        target: int64 [N], the class to be predicted, y.
        protected: int64 [N], the protected attribute, a. Read in training only by methods that declare it.
        ids: N strings that name the source of each image; equal for two images of one source.
        attributes: name -> int64 [N], further attributes for groups in the evaluation.
        clusters: N strings, equal for images that are not independent, such as those of one patient; default: the ids.
    """

    images: Pixels
    target: npt.NDArray[np.int64]
    protected: npt.NDArray[np.int64]
    ids: tuple[str, ...]
    attributes: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    clusters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.images)
        shape = self.images.shape
        if len(shape) != 4 or shape[3] != 3 or self.images.dtype != np.uint8:
            raise ValueError(f"images are {self.images.dtype} {shape}, expected uint8 [N, H, W, 3]")
        if not (self.target.shape == self.protected.shape == (n,) and len(self.ids) == n):
            raise ValueError(
                f"{n} images, {len(self.target)} targets, {len(self.protected)} protected, {len(self.ids)} ids"
            )
        if not self.clusters:
            object.__setattr__(self, "clusters", self.ids)
        if len(self.clusters) != n:
            raise ValueError(f"{n} images, {len(self.clusters)} clusters, expected one for each")
        for name, values in self.attributes.items():
            if values.shape != (n,):
                raise ValueError(f"{n} images, attribute {name!r} is {values.shape}, expected one value for each")

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> "ImageSet":
        """The images at ``indices``, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return self._with(self.images[chosen], chosen)

    def rows(self, indices: npt.NDArray[np.int64]) -> "ImageSet":
        """As :meth:`subset`, without a copy of the pixels, which may exceed the memory."""
        return self._with(Rows(self.images, indices), indices)

    def _with(self, pixels: Pixels, chosen: npt.NDArray[np.int64]) -> "ImageSet":
        return ImageSet(
            pixels,
            self.target[chosen],
            self.protected[chosen],
            tuple(self.ids[i] for i in chosen),
            {name: values[chosen] for name, values in self.attributes.items()},
            tuple(self.clusters[i] for i in chosen),
        )

    def digest_of_some(self) -> str:
        """Of all ids and target labels, and of the pixels of 64 images spread over the set: to compare processes."""
        some = np.linspace(0, len(self) - 1, min(len(self), _IN_DIGEST)).astype(np.int64)
        digest = hashlib.sha256(json.dumps([self.images.shape, self.ids, self.target.tolist()]).encode())
        digest.update(np.ascontiguousarray(self.images[some]).data)
        return digest.hexdigest()[:12]

    def group_counts(self, targets: int, protected: int) -> npt.NDArray[np.int64]:
        """int64 [Y, A]: images of each group (y, a)."""
        counts = np.zeros((targets, protected), dtype=np.int64)
        np.add.at(counts, (self.target, self.protected), 1)
        return counts


@dataclass(frozen=True)
class Splits:
    """The real images of a task; no cluster is in two splits.

    Attributes:
        train: biased; its group labels are read only by methods that declare it.
        validation: with the same bias (or natural); selects checkpoints.
        test: balanced or natural; read once, by evaluate.
        target_names, protected_names: names of the Y classes and of the A values, in the order of their numbers.
        attribute_names: for each attribute of the images the names of its values.
    """

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    target_names: tuple[str, ...]
    protected_names: tuple[str, ...]
    attribute_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, ImageSet]:
        """The three by the names of :data:`aimfair.data.catalogue.SPLITS`."""
        return dict(zip(SPLITS, (self.train, self.validation, self.test), strict=True))

    @property
    def shape(self) -> tuple[int, int]:
        """(Y, A)."""
        return len(self.target_names), len(self.protected_names)

    def contradictions(self, majority: Sequence[int]) -> list[str]:
        """A line for each class whose training images have mostly another protected value than ``majority`` says.

        Args:
            majority: ``data.majority``: for each of the Y classes the number of a protected value.
        """
        counts = self.train.group_counts(*self.shape)
        return [
            f"data.majority: {self.protected_names[a]!r} for class {self.target_names[y]!r}, but most of its training"
            f" images are {self.protected_names[counts[y].argmax()]!r}: the biased synthetic set has another bias than"
            " the real one"
            for y, a in enumerate(majority)
            if counts[y].max() > counts[y, a]
        ]


def union(first: ImageSet, second: ImageSet) -> ImageSet:
    """The images of ``first``, then those of ``second``, without copying pixels.

    Raises:
        AimfairError: the images differ in size.
    """
    shapes = [images.images.shape[1:] for images in (first, second)]
    if shapes[0] != shapes[1]:
        raise AimfairError(f"images of {shapes[0]} and {shapes[1]} cannot be one set; expected one data.image_size")
    return ImageSet(
        _Joined(first.images, second.images),
        np.concatenate([first.target, second.target]),
        np.concatenate([first.protected, second.protected]),
        first.ids + second.ids,
    )


class _Joined:
    """Concatenation of two sets without a copy, which may not fit into memory."""

    dtype = np.dtype(np.uint8)

    def __init__(self, first: Pixels, second: Pixels):
        self._first, self._second = first, second
        self.shape = (len(first) + len(second), *first.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any, /) -> npt.NDArray[np.uint8]:
        if isinstance(index, int | np.integer):
            number = range(len(self))[index]  # negative counts from the end; may raise IndexError
            ahead = len(self._first)
            return self._first[number] if number < ahead else self._second[number - ahead]
        numbers = np.arange(len(self))[index]
        out = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        ahead = numbers < len(self._first)
        out[ahead] = self._first[numbers[ahead]]
        out[~ahead] = self._second[numbers[~ahead] - len(self._first)]
        return out
