"""Images that were made elsewhere, in the place of those that a run would make: found, looked at, chosen, copied.

A folder has them in folders ``<y>_<a>``, named by the numbers of class and protected value, at any depth; or it is the
``synthetic`` of another run, whose ``manifest.jsonl`` says what each image is. Nothing in it is ever changed.
"""

import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from aimfair.base.errors import AimfairError
from aimfair.base.files import replace_file
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.log import NOWHERE, Log
from aimfair.base.progress import Progress
from aimfair.base.seeds import generator
from aimfair.data.bias import group_sizes
from aimfair.data.cache import decode_files
from aimfair.data.catalogue import IMAGE_SUFFIXES, Rejected, image_files, leave_out
from aimfair.data.decode import ImageError, open_image
from aimfair.data.settings import DataSettings
from aimfair.generation.job_folder import IMAGES, JOB, settle, whole
from aimfair.generation.manifest import DIGITS, ImageRecord, Manifest, Suffix, file_name
from aimfair.generation.plan import bias_of
from aimfair.generation.settings import GenerateSettings
from aimfair.generation.summary import GenerationSummary, GroupSummary
from aimfair.generation.synthetic import MAX_PIXELS

_GROUP = re.compile(r"(0|[1-9]\d{0,3})_(0|[1-9]\d{0,3})", re.ASCII)
_OURS: dict[str | None, Suffix] = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_SMALL = 8  # pixels along each side of what decoding keeps: only whether and what matters
_THREADS = 4  # that copy, each waiting for the disk
_CHUNK = 64  # images between two looks at the interrupt

PICTURES = "pictures"
"""Key of a recipe that images have which were copied, and no others."""

UNREADABLE, COPY, TWO_GROUPS, SPARE = "unreadable", "copy", "in two groups", "not needed"
"""Why an image is not kept."""


@dataclass(frozen=True)
class Found:
    """An image of the group (y, a) in ``file``, relative to its folder; the rest as in :class:`ImageRecord`."""

    file: str
    y: int
    a: int
    prompt: str = ""
    text: str = ""
    replica: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Source:
    """A folder with images that were made elsewhere.

    Attributes:
        images: sorted by file.
        stamps: file -> its size in bytes and its time of change in ns; (-1, 0) where it is missing.
        passed_over: names at the top of the folder that are no groups.
    """

    folder: Path
    images: tuple[Found, ...]
    stamps: dict[str, tuple[int, int]]
    passed_over: tuple[str, ...] = ()


def find(folder: Path, groups: tuple[int, int]) -> Source:
    """What is in a folder; no image is opened.

    Files whose names begin with a dot, or do not end as those of JPEG, PNG and WebP, are no images.

    Args:
        groups: (Y target classes, A protected values).

    Raises:
        AimfairError: the folder is of neither kind, or has a group that there is not.
    """
    manifest = Manifest(folder)
    passed_over: list[str] = []
    if manifest.path.exists():
        images = [
            Found(record.file, record.y, record.a, record.prompt, record.text, record.replica, record.seed)
            for record in manifest.records.values()
        ]
    else:
        images, passed_over = _in_group_folders(folder)
    images.sort(key=lambda one: one.file)
    for one in images:
        if not (0 <= one.y < groups[0] and 0 <= one.a < groups[1]):
            raise AimfairError(
                f"{folder / one.file}: found group (y={one.y}, a={one.a}), expected y below {groups[0]} (classes, see"
                f" data.majority) and a below {groups[1]} (lists of prompts.protected)"
            )
    if not images:
        names = ", ".join(f"{y}_{a}" for y in range(groups[0]) for a in range(groups[1]))
        raise AimfairError(
            f"generate.folder: {folder} has no images, expected them in folders {names}, or a manifest.jsonl of aimfair"
        )
    if twice := [name for name, times in Counter(one.file for one in images).items() if times > 1]:
        raise AimfairError(f"{manifest.path}: {twice[0]!r} is in several lines, expected one; restore the file")
    stamps = {one.file: _stamp(folder / one.file) for one in images}
    return Source(folder, tuple(images), stamps, tuple(passed_over))


@dataclass(frozen=True)
class Pictures:
    """What is in the files of a source.

    Attributes:
        digests: file -> digest of its pixels, of those that can be decoded.
        unreadable: the others.
        rejected: file -> why it is not kept: :data:`UNREADABLE`, :data:`COPY` or :data:`TWO_GROUPS`.
    """

    source: Source
    digests: dict[str, str]
    unreadable: tuple[Rejected, ...]
    rejected: dict[str, str]

    @property
    def digest(self) -> str:
        """Of the files' names, groups, texts and pixels: the same wherever they are copied to, and whenever."""
        facts = [(one, self.digests.get(one.file)) for one in self.source.images]
        return hashlib.sha256("\n".join(map(repr, facts)).encode("utf-8", "surrogatepass")).hexdigest()


def look(
    source: Source, data: DataSettings, *, progress: Progress | None = None, interrupt: Interrupt = NEVER
) -> Pictures:
    """Opens every image of a source; those whose size and time of change are known are not read again.

    Raises:
        Interrupted: as ``interrupt`` says.
    """
    files = [one.file for one in source.images]
    decoded = decode_files(
        source.folder, files, _SMALL, min(data.max_pixels, MAX_PIXELS), progress=progress, interrupt=interrupt
    )
    rejected = {name: UNREADABLE for name, _ in decoded.rejected}
    digests = {files[number]: digest for number, digest in zip(decoded.kept, decoded.digests, strict=True)}
    pictures: dict[str, list[Found]] = {}
    for one in source.images:
        if one.file in digests:
            pictures.setdefault(digests[one.file], []).append(one)
    for found in pictures.values():
        if len({(one.y, one.a) for one in found}) > 1:
            rejected |= {one.file: TWO_GROUPS for one in found}
        else:
            rejected |= {one.file: COPY for one in found[1:]}
    return Pictures(source, digests, decoded.rejected, rejected)


def recipe(digest: str, settings: GenerateSettings, data: DataSettings, values: int) -> dict[str, Any]:
    """All that decides which images are copied.

    Args:
        digest: of the :class:`Pictures`.
        values: A.
    """
    return {
        PICTURES: digest,
        "generate": settings.model_dump(include={"balanced_per_group", "biased_total", "disjoint", "seed"}),
        "bias": bias_of(settings, data),
        "majority": data.majority,
        "protected_values": values,
        "max_pixels": data.max_pixels,
    }


class Import:
    """Copies a balanced and a biased set out of a source; one that was cut off continues.

    Images that cannot be decoded are left out, and so are all but the first of a picture that is there several times,
    and all of a picture that is in two groups. The others are taken as in
    :func:`aimfair.generation.plan.make_plan`: the prompts of a group in turn, the images of a prompt in an order that
    follows from ``settings.seed``.

    Args:
        to: ``synthetic`` of the run.
        values: A, protected values.

    Attributes:
        chosen: what is copied, and the record of each, whose file name says number and pixels.
        summary: images of each group that were found, are kept, and are not, and why.

    Raises:
        AimfairError: more than ``data.max_bad_share`` of the images cannot be read, or a group has too few.
    """

    def __init__(
        self,
        pictures: Pictures,
        to: Path,
        settings: GenerateSettings,
        data: DataSettings,
        values: int,
        *,
        log: Log = NOWHERE,
        progress: Progress | None = None,
        interrupt: Interrupt = NEVER,
    ):
        source, digests, rejected = pictures.source, pictures.digests, dict(pictures.rejected)
        self._source, self._to, self._interrupt = source, to, interrupt
        self._progress = progress or Progress(quiet=True)
        if source.passed_over:
            names = ", ".join(map(repr, source.passed_over[:5]))
            log.warn(f"{source.folder}: not read, as its name is no group <y>_<a>: {names}")
        _tell_left_out(pictures, data, log)
        sizes = group_sizes(data.majority, values, bias_of(settings, data), settings.biased_total)
        groups: dict[tuple[int, int], list[Found]] = {(y, a): [] for y in range(len(sizes)) for a in range(values)}
        for one in source.images:
            if one.file not in rejected:
                groups[one.y, one.a].append(one)
        wanted = {group: _wanted(settings, int(sizes[group])) for group in groups}
        _refuse_shortage(source.folder, groups, wanted, settings)
        self.chosen: list[tuple[Found, ImageRecord]] = []
        for group, members in groups.items():
            ordered = _in_turn(members, settings.seed)
            for one, sets in zip(ordered, wanted[group], strict=False):
                self.chosen.append((one, _record(len(self.chosen), one, sets, digests[one.file], source.folder)))
            rejected |= {one.file: SPARE for one in ordered[len(wanted[group]) :]}
        self.summary = _summary(source, rejected, groups)

    @property
    def outputs(self) -> list[Path]:
        return [self._to / JOB, Manifest(self._to).path, self._to / IMAGES]

    def run(self, job: dict[str, Any], *, overwrite: bool) -> None:
        """Copies what is missing, and writes the manifest.

        Args:
            job: the :func:`recipe`; overwrite: as in :func:`aimfair.generation.job_folder.settle`.

        Raises:
            AimfairError: the folder of the run has other images, or an image was changed while it was copied.
            Interrupted: between two images; what is copied stays.
            OSError: an image or the manifest cannot be written.
        """
        settle(self._to, job, overwrite=overwrite)
        intact = whole(self._to, [((record.image, 0), record.file) for _, record in self.chosen])
        missing = [(one, record) for one, record in self.chosen if (record.image, 0) not in intact]
        with (
            self._progress.task("copy images", len(self.chosen), len(intact)) as task,
            ThreadPoolExecutor(_THREADS, thread_name_prefix="copy") as threads,
        ):
            for start in range(0, len(missing), _CHUNK):
                for _ in threads.map(self._copy, missing[start : start + _CHUNK]):
                    task.advance()
                self._interrupt.check()
        known = {self._to / record.file for _, record in self.chosen}
        for path in (self._to / IMAGES).iterdir():
            if path not in known and not path.is_dir():
                path.unlink()
        Manifest(self._to).keep({record.image: record for _, record in self.chosen})

    def _copy(self, pair: tuple[Found, ImageRecord]) -> None:
        one, record = pair
        path = self._source.folder / one.file
        with replace_file(self._to / record.file) as temporary:
            shutil.copyfile(path, temporary)
            if _stamp(path) != self._source.stamps[one.file]:
                raise AimfairError(f"{path}: it was changed while images were copied; run again")


def _tell_left_out(pictures: Pictures, data: DataSettings, log: Log) -> None:
    folder, total = pictures.source.folder, len(pictures.source.images)
    leave_out(pictures.unreadable, total, f"images of {folder}", data.max_bad_share, log)
    for reason, what in ((COPY, "copies of others"), (TWO_GROUPS, "pictures that are in two groups")):
        if names := [one.file for one in pictures.source.images if pictures.rejected.get(one.file) == reason]:
            log.warn(
                f"{len(names):,} of {total:,} images of {folder} left out, {what}: for example {names[0]!r}",
                rejected=names,
            )


def _in_group_folders(folder: Path) -> tuple[list[Found], list[str]]:
    """The images, and the names of folders and images that are in no group."""
    found: list[Found] = []
    passed_over = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        group = _GROUP.fullmatch(entry.name)
        if group is None or not entry.is_dir():
            if entry.is_dir() or entry.name.lower().endswith(IMAGE_SUFFIXES):
                passed_over.append(entry.name)
            continue
        found += [
            Found(f"{entry.name}/{file}", int(group[1]), int(group[2]))
            for file in image_files(entry)
            if not PurePosixPath(file).name.startswith(".")
        ]
    return found, passed_over


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return -1, 0
    return status.st_size, status.st_mtime_ns


def _wanted(settings: GenerateSettings, biased: int) -> list[list[str]]:
    """For each image that a group must have, the sets it is in; ``biased`` of them in the biased one."""
    balanced = range(settings.balanced_per_group)
    first = balanced.stop if settings.disjoint else 0
    sets = {"balanced": balanced, "biased": range(first, first + biased)}
    return [
        [name for name, numbers in sets.items() if number in numbers]
        for number in range(max(balanced.stop, first + biased))
    ]


def _refuse_shortage(
    folder: Path,
    groups: dict[tuple[int, int], list[Found]],
    wanted: dict[tuple[int, int], list[list[str]]],
    settings: GenerateSettings,
) -> None:
    short = [
        f"(y={y}, a={a}) has {len(members):,}, {len(wanted[y, a]):,} are needed"
        for (y, a), members in groups.items()
        if len(members) < len(wanted[y, a])
    ]
    if short:
        apart = "; or let the two sets share images: generate.disjoint false" if settings.disjoint else ""
        raise AimfairError(
            f"generate.folder: {folder} has too few different images that can be read: group {'; '.join(short)}; add"
            f" images, or lower generate.balanced_per_group ({settings.balanced_per_group:,}) or generate.biased_total"
            f" ({settings.biased_total:,}){apart}"
        )


def _in_turn(members: Sequence[Found], seed: int) -> list[Found]:
    """One image of each prompt, then another of each, and so on."""
    prompts: dict[str, list[Found]] = {}
    for one in members:
        prompts.setdefault(one.prompt, []).append(one)
    placed = []
    for prompt, images in sorted(prompts.items()):
        order = generator(seed, "imported", images[0].y, images[0].a, prompt).permutation(len(images))
        placed += [((turn, prompt), images[number]) for turn, number in enumerate(order)]
    return [one for _, one in sorted(placed, key=lambda pair: pair[0])]


def _record(image: int, one: Found, sets: list[str], digest: str, folder: Path) -> ImageRecord:
    try:
        with (folder / one.file).open("rb") as file:
            suffix = _OURS[open_image(folder / one.file, file).format]
    except (OSError, ImageError, KeyError) as error:
        raise AimfairError(f"{folder / one.file}: it was changed while it was read ({error}); run again") from error
    return ImageRecord(
        image=image,
        y=one.y,
        a=one.a,
        prompt=one.prompt,
        text=one.text,
        replica=one.replica,
        seed=one.seed,
        sets=sets,
        file=file_name(image, digest[:DIGITS], suffix),
        attempt=0,
        rejected=[],
    )


def _summary(source: Source, rejected: dict[str, str], groups: Iterable[tuple[int, int]]) -> GenerationSummary:
    found = Counter((one.y, one.a) for one in source.images)
    reasons: dict[tuple[int, int], Counter[str]] = {group: Counter() for group in groups}
    for one in source.images:
        if one.file in rejected:
            reasons[one.y, one.a][rejected[one.file]] += 1
    return GenerationSummary(
        groups=[
            GroupSummary(
                y=y,
                a=a,
                made=found[y, a],
                kept=found[y, a] - reasons[y, a].total(),
                rejected=dict(sorted(reasons[y, a].items())),
            )
            for y, a in groups
        ],
        speed=None,
        folder=str(source.folder),
    )
