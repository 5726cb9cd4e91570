"""Derives problems from the facts, with advice."""

from collections.abc import Iterator

from aimfair.base.errors import listed
from aimfair.config import Config
from aimfair.data.images import Splits
from aimfair.scan.results import Copies, Duplicates, ImageFacts, Imported, LeftOut, Problem, Scan
from aimfair.scan.settings import ScanSettings

_MUST_BE_FIXED = "no run with these settings is possible until this is fixed"
_ENLARGED = 0.5  # share of small images above which data.image_size is too large
_NAMED_ALONE = 4  # groups without images that have a line each
_ASSOCIATED = 0.1  # Cramer's V below which there is little bias to learn (Cohen 1988: the smallest small effect)


def problems(scan: Scan, config: Config | ScanSettings, splits: Splits | None) -> list[Problem]:
    """Errors first, then warnings, then notes.

    Args:
        scan: without problems.
        splits: what a run would load; None if it would fail.
    """
    order = ("error", "warning", "note")
    return sorted(_problems(scan, config, splits), key=lambda problem: order.index(problem.level))


def _problems(scan: Scan, config: Config | ScanSettings, splits: Splits | None) -> Iterator[Problem]:
    if scan.taken.refusal is not None:
        yield _error(scan.taken.refusal, _fix(scan.taken.refusal, scan))
    for spelled in scan.spellings:
        yield _warning(spelled.what, spelled.advice)
    if scan.imported is not None:
        yield from _imported(scan.imported)
    for part, what, advice in (
        (scan.rows, "rows", "correct or remove them; a run skips them, up to data.max_bad_share"),
        (
            scan.files,
            "files",
            "replace them or remove them from the list; a run skips them, up to data.max_bad_share",
        ),
    ):
        if part is not None and part.left_out:
            yield _warning(f"{part.left_out:,} of {part.total:,} {what} cannot be used: {_reasons(part)}", advice)
    if scan.duplicates is not None:
        yield from _copies(scan, scan.duplicates)
    yield from _attributes(scan)
    if not _groups_are_misspelled(scan):
        yield from _groups(scan)
        yield from _association(scan)
        if splits is not None:
            for line in splits.contradictions(config.data.majority):
                yield _warning(
                    line, "set data.majority to the value that dominates each class, or check the order of the classes"
                )
    if scan.images is not None:
        yield from _images(scan.images, config)


def _groups_are_misspelled(scan: Scan) -> bool:
    """Whether a class or protected value counts as several, so that what is said of groups would mislead."""
    return any(spelled.key in ("data.target", "data.protected", "data.intersect_with") for spelled in scan.spellings)


def _fix(refusal: str, scan: Scan) -> str:
    if not refusal.startswith(("data.majority", "prompts.")):
        return _MUST_BE_FIXED
    if _groups_are_misspelled(scan):
        return "first give each value one spelling, then scan again: some count as several classes or protected values"
    if refusal.startswith("prompts."):
        return _MUST_BE_FIXED
    counts = scan.groups.get("train") or scan.groups["all"]
    dominating = ",".join(str(row.index(max(row))) for row in counts)
    return (
        f"--data.majority {dominating} would name the dominant value of each class in"
        f" the {'training images' if 'train' in scan.groups else 'images'}, numbered as in"
        f" {', '.join(map(repr, scan.protected_names))}"
    )


def _imported(found: Imported) -> Iterator[Problem]:
    if found.refusal is not None:
        yield _error(found.refusal, _MUST_BE_FIXED)
    for warning in found.warnings:
        yield _warning(warning, "correct the folder unless this is intended")


def _copies(scan: Scan, found: Duplicates) -> Iterator[Problem]:
    without_splits = "all" in scan.groups
    if found.test.images:
        yield _warning(
            f"{_many(found.test)} in the test set and in another split, {_example(found.test)}",
            "remove all but one copy: testing on training images measures nothing",
        )
    if found.contradictory.images:
        yield _warning(
            f"{_many(found.contradictory)} with different labels, {_example(found.contradictory)}",
            "correct the labels or remove the copies" + ("; a run skips all of them" if without_splits else ""),
        )
    if found.train_val.images:
        yield _warning(
            f"{_many(found.train_val)} in training and in validation, {_example(found.train_val)}",
            "remove all but one copy: they bias the choice of a checkpoint",
        )
    if found.within.images:
        where = "" if without_splits else " within a split"
        yield _note(
            f"{_many(found.within)} present more than once{where}, {_example(found.within)}",
            "a run uses the first of each" if without_splits else "remove them unless they should count repeatedly",
        )
    if found.near is not None and found.near.pairs:
        first, second = found.near.examples[0]
        at_least = "" if found.near.complete else "at least "
        yield _warning(
            f"{at_least}{found.near.pairs:,} pairs of images in different splits look alike,"
            f" {found.near.with_test:,} of them with a test image, for example {first!r} and {second!r}",
            "inspect them: versions of one image, or images of one person, belong in one split",
        )


def _groups(scan: Scan) -> Iterator[Problem]:
    taken = scan.taken.groups or scan.groups
    small = []
    advice = "add images of it"
    if scan.rows is not None and scan.rows.left_out:
        advice = f"first correct the {scan.rows.left_out:,} rows that are left out, then {advice}"
    for split, lacks in (("train", "no model can learn it from real images"), ("test", "its accuracy is undefined")):
        empty = []
        for y, row in enumerate(taken.get(split, ())):
            for a, images in enumerate(row):
                name = f"({scan.target_names[y]!r}, {scan.protected_names[a]!r})"
                if images == 0:
                    empty.append(name)
                elif split == "test" and images < scan.small_group:
                    small.append(f"{name} {images}")
        if len(empty) > _NAMED_ALONE:
            yield _warning(f"{len(empty)} groups have no {split} images: {listed(empty)}", advice)
        else:
            for name in empty:
                yield _warning(f"group {name} has no {split} images: {lacks}", advice)
    if small:
        yield _warning(
            f"groups with fewer than {scan.small_group} test images (evaluate.small_group): {listed(small)}; their"
            " accuracies will be uncertain",
            "add test images of these groups, or increase data.test_share if the data set has no splits",
        )


def _attributes(scan: Scan) -> Iterator[Problem]:
    """Values with few test images; only for data sets with splits, as others have counts by group alone, and of
    attributes whose values have one spelling each."""
    misspelled = {spelled.name for spelled in scan.spellings}
    for attribute in scan.attributes:
        if attribute.name in misspelled:
            continue
        few = [
            f"{name!r} {images}"
            for name, images in zip(attribute.names, attribute.counts.get("test", ()), strict=False)
            if images < scan.small_group
        ]
        if few:
            yield _warning(
                f"attribute {attribute.name!r}: values with fewer than {scan.small_group} test images"
                f" (evaluate.small_group): {listed(few)}",
                "add test images of these values, or drop the attribute",
            )


def _images(found: ImageFacts, config: Config | ScanSettings) -> Iterator[Problem]:
    size = config.data.image_size
    if found.dark:
        yield _warning(
            f"{found.dark:,} of {found.total:,} images are nearly black, no value above 31 of 255, for example"
            f" {found.dark_examples[0]!r}",
            "of 16-bit files only the upper eight bits are kept: if they use 10 or 12 bits, rescale them first",
        )
    if found.not_square:
        middle = found.elongation.median
        loses = f"cropped to their center: half of them lose at least {1 - 1 / middle:.0%} of their area"
        stretched = f"stretched: half of them by a factor of at least {middle:.2f}"
        yield _note(
            f"{found.not_square:,} of {found.total:,} images are not square and will be"
            f" {stretched if config.data.fit == 'stretch' else loses}",
            "check that the classes remain distinguishable; data.fit is crop or stretch",
        )
    if found.smaller > _ENLARGED * found.total:
        yield _note(
            f"{found.smaller:,} of {found.total:,} images are smaller than the {size} pixels of data.image_size",
            "a smaller data.image_size loses nothing and is faster, if the model supports it",
        )
    if 0 < found.grey < found.total:
        yield _note(
            f"{found.grey:,} of {found.total:,} images are grey",
            "check that they are not all in one group: a model would learn that",
        )


def _association(scan: Scan) -> Iterator[Problem]:
    value = scan.taken.association if scan.taken.groups is not None else scan.association
    if value is None:
        return
    if value < _ASSOCIATED:
        yield _note(
            f"class and protected value are barely associated in the training images (Cramer's V {value:.2f})",
            "these counts teach little bias, though a model may be biased for other reasons",
        )
    else:
        yield _note(
            f"class and protected value are associated in the training images (Cramer's V {value:.2f})",
            "a model can learn this bias; data.minority_ratio and data.majority must describe it",
        )


def _many(copies: Copies) -> str:
    return f"{copies.images:,} image{'s' if copies.images > 1 else ''} (in {copies.files:,} files)"


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
