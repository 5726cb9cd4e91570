"""What of the facts is a problem, and what to do about it."""

from collections.abc import Iterator

from aimfair.config import Config
from aimfair.data.images import Splits
from aimfair.scan.results import Copies, Duplicates, Imported, LeftOut, Pictures, Problem, Scan
from aimfair.scan.settings import ScanSettings

_ENLARGED = 0.5  # share of small images above which data.image_size is too large
_ASSOCIATED = 0.1  # Cramer's V below which there is hardly a bias to learn (Cohen 1988: small effects begin there)


def problems(scan: Scan, config: Config | ScanSettings, splits: Splits | None) -> list[Problem]:
    """Errors first, then warnings, then notes.

    Args:
        scan: without problems.
        splits: what a run would take; None if it would end.
    """
    order = ("error", "warning", "note")
    return sorted(_problems(scan, config, splits), key=lambda problem: order.index(problem.level))


def _problems(scan: Scan, config: Config | ScanSettings, splits: Splits | None) -> Iterator[Problem]:
    if scan.taken.refusal is not None:
        yield _error(scan.taken.refusal, _mending(scan.taken.refusal, scan))
    if scan.imported is not None:
        yield from _imported(scan.imported)
    for part, what, advice in (
        (scan.rows, "rows", "correct or remove them; a run leaves them out, up to data.max_bad_share"),
        (
            scan.files,
            "files",
            "replace them or take them off the list; a run leaves them out, up to data.max_bad_share",
        ),
    ):
        if part is not None and part.left_out:
            yield _warning(f"{part.left_out:,} of {part.total:,} {what} cannot be used: {_reasons(part)}", advice)
    if scan.duplicates is not None:
        yield from _copies(scan, scan.duplicates)
    yield from _groups(scan)
    yield from _attributes(scan)
    if splits is not None:
        for line in splits.contradictions(config.data.majority):
            yield _warning(line, "set data.majority to what dominates each class, or check the order of the classes")
    if scan.pictures is not None:
        yield from _pictures(scan.pictures, config)
    yield from _association(scan)


def _mending(refusal: str, scan: Scan) -> str:
    if not refusal.startswith("data.majority"):
        return "no run with these settings is possible before this is mended"
    counts = scan.groups.get("train") or scan.groups["all"]
    dominating = ",".join(str(row.index(max(row))) for row in counts)
    return (
        f"--data.majority {dominating} would name what dominates each class of"
        f" the {'training images' if 'train' in scan.groups else 'images'}, by its number among"
        f" {', '.join(map(repr, scan.protected_names))}"
    )


def _imported(found: Imported) -> Iterator[Problem]:
    if found.refusal is not None:
        yield _error(found.refusal, "no run with these settings is possible before this is mended")
    for warning in found.warnings:
        yield _warning(warning, "correct the folder, if that was not meant")


def _copies(scan: Scan, found: Duplicates) -> Iterator[Problem]:
    without_splits = "all" in scan.groups
    if found.test.pictures:
        yield _warning(
            f"{_many(found.test)} in the test set and in another split, {_example(found.test)}",
            "take all but one of the copies out: a test on training images measures nothing",
        )
    if found.contradictory.pictures:
        yield _warning(
            f"{_many(found.contradictory)} with different labels, {_example(found.contradictory)}",
            "correct the labels, or take the copies out" + ("; a run leaves out all of them" if without_splits else ""),
        )
    if found.train_val.pictures:
        yield _warning(
            f"{_many(found.train_val)} in training and in validation, {_example(found.train_val)}",
            "take all but one of the copies out: the choice of a checkpoint is too sure of them",
        )
    if found.within.pictures:
        where = "" if without_splits else " within a split"
        yield _note(
            f"{_many(found.within)} there more than once{where}, {_example(found.within)}",
            "a run takes the first of each" if without_splits else "take them out, unless they should count as often",
        )
    if found.near is not None and found.near.pairs:
        first, second = found.near.examples[0]
        at_least = "" if found.near.complete else "at least "
        yield _warning(
            f"{at_least}{found.near.pairs:,} pairs of images in different splits look alike,"
            f" {found.near.with_test:,} of them with a test image, for example {first!r} and {second!r}",
            "look at them: other versions of one picture, or pictures of one person, belong into one split",
        )


def _groups(scan: Scan) -> Iterator[Problem]:
    taken = scan.taken.groups or scan.groups
    small = []
    for split in ("train", "test"):
        for y, row in enumerate(taken.get(split, ())):
            for a, images in enumerate(row):
                name = f"({scan.target_names[y]!r}, {scan.protected_names[a]!r})"
                if images == 0:
                    lacks = "its accuracy is undefined" if split == "test" else "no model can learn it from real images"
                    yield _warning(f"group {name} has no {split} images: {lacks}", "add images of this group")
                elif split == "test" and images < scan.small_group:
                    small.append(f"{name} {images}")
    if small:
        yield _warning(
            f"groups with fewer than {scan.small_group} test images (evaluate.small_group): {', '.join(small)}; their"
            " accuracies will be uncertain",
            "add test images of these groups, or take a larger data.test_share where there are no splits",
        )


def _attributes(scan: Scan) -> Iterator[Problem]:
    """Values that few test images have; where there are no splits, the test images are known by groups alone."""
    for attribute in scan.attributes:
        few = [
            f"{name!r} {images}"
            for name, images in zip(attribute.names, attribute.counts.get("test", ()), strict=False)
            if images < scan.small_group
        ]
        if few:
            yield _warning(
                f"attribute {attribute.name!r}: values with fewer than {scan.small_group} test images"
                f" (evaluate.small_group): {', '.join(few)}",
                "add test images of these values, or leave the attribute out",
            )


def _pictures(found: Pictures, config: Config | ScanSettings) -> Iterator[Problem]:
    size = config.data.image_size
    if found.dark:
        yield _warning(
            f"{found.dark:,} of {found.images:,} images are nearly black, no value above 31 of 255, for example"
            f" {found.dark_examples[0]!r}",
            "of files with 16 bits the upper eight are kept: where only 10 or 12 are used, scale them up before",
        )
    if found.not_square:
        middle = found.elongation.median
        loses = f"cut to their middle: half of them lose {1 - 1 / middle:.0%} of their area or more"
        stretched = f"stretched: half of them by a factor of {middle:.2f} or more"
        yield _note(
            f"{found.not_square:,} of {found.images:,} images are not square and will be"
            f" {stretched if config.data.fit == 'stretch' else loses}",
            "look whether what tells the classes apart survives; data.fit is crop or stretch",
        )
    if found.smaller > _ENLARGED * found.images:
        yield _note(
            f"{found.smaller:,} of {found.images:,} images are smaller than the {size} pixels of data.image_size",
            "a smaller data.image_size would lose nothing and be faster, if the model allows it",
        )
    if 0 < found.grey < found.images:
        yield _note(
            f"{found.grey:,} of {found.images:,} images are grey",
            "make sure that they are not all of one group: a model would learn that",
        )


def _association(scan: Scan) -> Iterator[Problem]:
    value = scan.taken.association if scan.taken.groups is not None else scan.association
    if value is None:
        return
    if value < _ASSOCIATED:
        yield _note(
            f"class and protected value are hardly associated in the training images (Cramer's V {value:.2f})",
            "a model may be biased all the same, but there is little of it to be learned from these counts",
        )
    else:
        yield _note(
            f"class and protected value are associated in the training images (Cramer's V {value:.2f})",
            "this is the bias that a model can learn; data.minority_ratio and data.majority must describe it",
        )


def _many(copies: Copies) -> str:
    return f"{copies.pictures:,} picture{'s' if copies.pictures > 1 else ''} (in {copies.files:,} files)"


def _example(copies: Copies) -> str:
    return "for example " + " and ".join(repr(name) for name in copies.examples[0][:2])


def _reasons(part: LeftOut) -> str:
    return "; ".join(
        f"{reason.reason} ({reason.count:,}, for example {reason.examples[0][0]!r})" for reason in part.reasons[:3]
    )


def _error(what: str, advice: str) -> Problem:
    return Problem(level="error", what=what, advice=advice)


def _warning(what: str, advice: str) -> Problem:
    return Problem(level="warning", what=what, advice=advice)


def _note(what: str, advice: str) -> Problem:
    return Problem(level="note", what=what, advice=advice)
