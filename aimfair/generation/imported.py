"""Existing images instead of generated ones: chooses a balanced and a biased set, and copies them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.log import NOWHERE, Log
from aimfair.base.os_errors import of_the_machine
from aimfair.base.progress import Progress
from aimfair.base.seeds import generator
from aimfair.data.biased_subset import group_sizes
from aimfair.data.catalogue import leave_out
from aimfair.data.decode import ImageError, open_image
from aimfair.data.settings import DataSettings
from aimfair.generation import image_folder
from aimfair.generation.manifest import DIGITS, ImageRecord, Shards, Suffix, file_name, write_manifest
from aimfair.generation.plan import Group, minority_ratio, sets_of_group, size_of_group
from aimfair.generation.provenance import Provenance
from aimfair.generation.settings import GenerateSettings
from aimfair.generation.source import COPY, TWO_GROUPS, Found, Source, stamp
from aimfair.generation.store import ImageStore, open_store
from aimfair.generation.summary import GenerationSummary

SPARE = "not needed"
"""Why a usable image is not kept."""

_SUFFIXES: dict[str | None, Suffix] = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_THREADS = 4  # that copy, each waiting for the disk
_CHUNK = 64  # images between two checks of the interrupt


@dataclass(frozen=True)
class Choice:
    """The images of a source that are copied.

    Attributes:
        images: each with its record, whose file name has its number and digest.
        summary: images of each group that were found, are kept, and are not and why.
    """

    source: Source
    images: list[tuple[Found, ImageRecord]]
    summary: GenerationSummary


def choose(source: Source, settings: GenerateSettings, data: DataSettings, values: int, log: Log = NOWHERE) -> Choice:
    """A balanced and a biased set, as :func:`aimfair.generation.plan.make_plan` would order them.

    Left out are images that cannot be decoded, copies of an earlier image, and images that appear in two groups. Each
    prompt of a group gives one image, then each another, and so on; ``settings.seed`` decides the order within one.

    Args:
        values: A, the number of protected values.

    Raises:
        AimfairError: more than ``data.max_bad_share`` of the images cannot be read, or a group has too few.
    """
    rejected = dict(source.rejected)
    _warn_of_omissions(source, data, log)
    sizes = group_sizes(data.majority, values, minority_ratio(settings, data), settings.biased_total)
    groups: dict[Group, list[Found]] = {(y, a): [] for y in range(len(sizes)) for a in range(values)}
    for one in source.images:
        if one.file not in rejected:
            groups[one.group].append(one)
    wanted = {group: size_of_group(settings, int(sizes[group])) for group in groups}
    _refuse_shortage(source.folder, groups, wanted, settings)
    chosen: list[tuple[Found, ImageRecord]] = []
    for group, members in groups.items():
        ordered = _in_turn(members, settings.seed)
        for one, sets in zip(ordered, sets_of_group(settings, int(sizes[group])), strict=False):
            chosen.append((one, _record(len(chosen), one, sets, source)))
        rejected |= {one.file: SPARE for one in ordered[wanted[group] :]}
    not_kept = [(one.group, rejected[one.file]) for one in source.images if one.file in rejected]
    summary = GenerationSummary.of([one.group for one, _ in chosen], not_kept, folder=str(source.folder))
    return Choice(source, chosen, summary)


def copy_images(
    choice: Choice,
    to: Path,
    provenance: Provenance,
    settings: GenerateSettings,
    *,
    overwrite: bool,
    progress: Progress | None = None,
    interrupt: Interrupt = NEVER,
) -> None:
    """Copies what is missing, and writes the manifest; an interrupted copy continues.

    Args:
        to: ``synthetic`` of the run.
        overwrite: as in :func:`aimfair.generation.image_folder.settle`.

    Raises:
        AimfairError: ``to`` has other images, or an image changed while it was copied.
        Interrupted: between two images; those copied stay.
        OSError: an image or the manifest cannot be written.
    """
    image_folder.settle(to, provenance, overwrite=overwrite)
    store = open_store(to, settings)
    names = {record.image: _name(record) for _, record in choice.images}
    intact = store.intact(names.values())
    missing = [(one, record) for one, record in choice.images if names[record.image] not in intact]
    with (
        (progress or Progress(quiet=True)).task("copy images", len(names), len(intact)) as task,
        closing(store),
        ThreadPoolExecutor(_THREADS, thread_name_prefix="copy") as threads,
    ):
        for start in range(0, len(missing), _CHUNK):
            for _ in threads.map(partial(_copy, choice.source, store), missing[start : start + _CHUNK]):
                task.advance()
            store.flush()
            interrupt.check()
    store.keep(names.values())
    write_manifest(to, store.finish(list(names.values()), (record for _, record in choice.images)))
    Shards(to).remove()


def _copy(source: Source, store: ImageStore, image: tuple[Found, ImageRecord]) -> None:
    one, record = image
    with source.reader.open(one.file) as file:
        data = file.read()
    if stamp(source.folder, one.file) != source.stamps[one.file]:
        raise AimfairError(f"{source.folder / one.file}: changed while images were copied; run again")
    store.put(_name(record), data)


def _name(record: ImageRecord) -> str:
    return record.file.rpartition("/")[2]


def _warn_of_omissions(source: Source, data: DataSettings, log: Log) -> None:
    folder, total = source.folder, len(source.images)
    if source.ignored:
        names = ", ".join(map(repr, source.ignored[:5]))
        log.warn(f"{folder}: ignored, as the name is not that of a group <y>_<a>: {names}")
    leave_out(source.unreadable, total, f"images of {folder}", data.max_bad_share, log)
    for reason, what in ((COPY, "copies of others"), (TWO_GROUPS, "images that appear in two groups")):
        if files := [one.file for one in source.images if source.rejected.get(one.file) == reason]:
            log.warn(
                f"{len(files):,} of {total:,} images of {folder} left out, {what}: for example {files[0]!r}",
                rejected=files,
            )


def _refuse_shortage(
    folder: Path, groups: dict[Group, list[Found]], wanted: dict[Group, int], settings: GenerateSettings
) -> None:
    short = [
        f"(y={y}, a={a}) has {len(members):,}, {wanted[y, a]:,} are needed"
        for (y, a), members in groups.items()
        if len(members) < wanted[y, a]
    ]
    if short:
        share = "; or let the two sets share images: generate.disjoint false" if settings.disjoint else ""
        raise AimfairError(
            f"generate.folder: {folder} has too few different images that can be read: group {'; '.join(short)}; add"
            f" images, or lower generate.balanced_per_group ({settings.balanced_per_group:,}) or generate.biased_total"
            f" ({settings.biased_total:,}){share}"
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


def _record(image: int, one: Found, sets: list[str], source: Source) -> ImageRecord:
    folder, digest = source.folder, source.digests[one.file]
    try:
        with source.reader.open(one.file) as file:
            suffix = _SUFFIXES[open_image(folder / one.file, file).format]
    except (OSError, ImageError, KeyError) as error:
        if of_the_machine(error):
            raise
        raise AimfairError(f"{folder / one.file}: changed while it was read ({error}); run again") from error
    name = file_name(image, digest[:DIGITS], suffix)
    return ImageRecord(**asdict(one) | {"image": image, "sets": sets, "file": name, "attempt": 0, "rejected": []})
