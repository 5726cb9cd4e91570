"""Real images among imported synthetic ones: training on an image of the test set invalidates the test."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.log import NOWHERE, Log
from aimfair.base.progress import Progress
from aimfair.data.decode import content_digest
from aimfair.data.images import ImageSet, Splits
from aimfair.data.load import decode, decoded_together, list_images, with_biased_training
from aimfair.data.settings import DRAWN, DataSettings


@dataclass(frozen=True)
class Leak:
    """A real image among imported ones.

    Attributes:
        file: there. real: its id among the real images, of ``split``.
    """

    file: str
    split: str
    real: str


def find_leaks(
    digests: Mapping[str, str],
    splits: Splits,
    settings: DataSettings,
    *,
    progress: Progress | None = None,
    interrupt: Interrupt = NEVER,
) -> list[Leak]:
    """The imported images that equal one of ``splits`` in size and in every pixel.

    Args:
        digests: file -> digest of its pixels, by :func:`aimfair.data.decode.content_digest`.
        splits: of ``settings``; their images are in the cache of decoded ones, so none is read again.

    Returns:
        In the order of ``digests``; an image of several splits counts to test before validation before training.
    """
    real: dict[str, tuple[str, str]] = {}
    of_files = None if settings.kind in DRAWN else _digests_of_files(settings, progress, interrupt)
    for name, part in splits.parts.items():
        real |= {digest: (name, one) for one, digest in zip(part.ids, _digests(part, of_files), strict=True)}
    return [Leak(file, *real[digest]) for file, digest in digests.items() if digest in real]


def refuse_leaks(leaks: list[Leak], folder: Path, log: Log) -> None:
    """Refuses images of the test set in ``folder``; warns of images of other splits.

    Raises:
        AimfairError: there is one.
    """
    for split, part in (("test", "the test set"), ("val", "validation"), ("train", "training")):
        if found := [leak for leak in leaks if leak.split == split]:
            line = (
                f"generate.folder: {len(found):,} images of {folder} are real images of {part}, for example"
                f" {found[0].file!r} is {found[0].real!r}"
            )
            if split == "test":
                raise AimfairError(f"{line}; take them out: a test on training images measures nothing")
            log.warn(line, files=[leak.file for leak in found])


def _digests_of_files(settings: DataSettings, progress: Progress | None, interrupt: Interrupt) -> dict[str, str]:
    """File -> digest of its pixels, of those that :func:`aimfair.data.load.load_splits` takes, decoded as it does."""
    catalogue = with_biased_training(list_images(settings), settings)
    found: dict[str, str] = {}
    for numbers in decoded_together(catalogue):
        some = catalogue.subset(numbers)
        decoded = decode(some, settings, NOWHERE, progress, interrupt)
        found |= {some.files[number]: digest for number, digest in zip(decoded.kept, decoded.digests, strict=True)}
    return found


def _digests(part: ImageSet, of_files: dict[str, str] | None) -> list[str]:
    if of_files is None:  # drawn, several from one digit or emoji
        return [content_digest(Image.fromarray(part.images[number])) for number in range(len(part))]
    return [of_files[file] for file in part.ids]
