"""Lines that a damaged manifest has lost, from the files of the images."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from aimfair.data.decode import ImageError, dhash
from aimfair.generation.manifest import DIGITS, Outcome
from aimfair.generation.plan import Group, PlannedImage
from aimfair.generation.settings import GenerateSettings
from aimfair.generation.store import ImageStore
from aimfair.generation.summary import GenerationSummary


def recover(
    store: ImageStore,
    plan: Sequence[PlannedImage],
    known: Sequence[Outcome],
    summary: GenerationSummary | None,
    settings: GenerateSettings,
) -> list[Outcome]:
    """The outcomes of images whose lines are lost.

    A file does not tell which attempt made its image. Where the known lines of a group have all its rejections, the
    lost ones had none; the images of other groups must be made again.

    Args:
        store: the images of a finished job.
        known: the outcomes that are left.
        summary: of that job; None: nothing is recovered. Nor if images have a score, which only its model can give.
    """
    if summary is None or settings.filters.quality is not None:
        return []
    groups = {planned.image: planned.group for planned in plan}
    rejected = Counter(groups.get(one.image) for one in known if one.reason is not None)
    certain: set[Group] = {
        (group.y, group.a) for group in summary.groups if sum(group.rejected.values()) == rejected[group.y, group.a]
    }
    have = {one.image for one in known}
    files: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for name in store.names():
        if found := re.fullmatch(rf"([0-9]{{6,}})-([0-9a-f]{{{DIGITS}}})\.{settings.image_format}", name):
            files[int(found[1])].append((name, found[2]))
    return [
        Outcome(image=image, attempt=0, digest=digest, hash=_hash(store, name, settings))
        for image, of_image in sorted(files.items())
        if image not in have and groups.get(image) in certain and len(of_image) == 1
        for name, digest in of_image
    ]


def _hash(store: ImageStore, name: str, settings: GenerateSettings) -> str | None:
    if not settings.filters.hashed:
        return None
    try:
        return dhash(store.read_rgb(name))
    except ImageError:  # it is made again
        return None
