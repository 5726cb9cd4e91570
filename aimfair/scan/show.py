"""Prints a scan. Names of files, classes and values are printed as ``repr`` writes them."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from aimfair.scan.results import AttributeCounts, Groups, Imported, LeftOut, Scan

_COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def show(scan: Scan, console: Console) -> None:
    """Prints the facts, then what a run would use, then the problems."""
    for part in (*_files(scan), *_groups(scan), *_problems(scan)):
        console.print(part, soft_wrap=isinstance(part, Text))


def _files(scan: Scan) -> Iterator[Text]:
    where = f", {scan.root!r}" if scan.root is not None else ", generated, so there are no files"
    yield Text(f"{scan.kind}{where}", "bold")
    yield Text(f"target {scan.target!r}, protected {scan.protected!r}")
    for name, part in (("rows", scan.rows), ("files", scan.files)):
        if part is not None:
            yield from _left_out(name, part)
    if scan.images is not None:
        found = scan.images
        formats = ", ".join(f"{count:,} {name}" for name, count in found.formats.items())
        yield Text(f"images: {formats}; {found.grey:,} of them grey")
        for side, extent in (("width", found.width), ("height", found.height)):
            yield Text(f"{side}: {extent.least:g} to {extent.greatest:g} pixels, median {extent.median:g}")
        yield Text(f"not square: {found.not_square:,}; aspect ratios up to {found.elongation.greatest:.3g}")
    if scan.duplicates is not None:
        copies = scan.duplicates
        yield Text(
            f"images in several files: {copies.within.images:,} harmless,"
            f" {copies.contradictory.images:,} with different labels, {copies.train_val.images:,} in training and"
            f" validation, {copies.test.images:,} in the test set and elsewhere"
        )
        if copies.near is not None:
            yield Text(f"similar images in different splits: {copies.near.pairs:,}")


def _groups(scan: Scan) -> Iterator[Text | Table]:
    yield from map(_attribute, scan.attributes)
    if scan.groups != scan.taken.groups:
        yield _table("Decodable images", scan, scan.groups)
        yield Text(f"association of class and protected value (Cramer's V): {_value(scan.association)}")
    if scan.taken.groups is not None:
        yield _table("What a run would use", scan, scan.taken.groups)
        yield Text(f"association of class and protected value in its training images: {_value(scan.taken.association)}")
    if scan.imported is not None:
        yield from _imported(scan.imported)
        if scan.imported.found is not None and scan.imported.usable is not None:
            counts = {"found": scan.imported.found, "can be used": scan.imported.usable}
            yield _table("Synthetic images in generate.folder", scan, counts)


def _problems(scan: Scan) -> Iterator[Text]:
    for warning in scan.taken.warnings:
        yield Text(f"a run would warn: {warning}", "dim")
    for problem in scan.problems:
        yield Text(f"{problem.level}: ", _COLOURS[problem.level]) + Text(problem.what)
        yield Text(f"  -> {problem.advice}")
    if not scan.problems:
        yield Text("no problems found")


def _imported(found: Imported) -> Iterator[Text]:
    yield Text(f"synthetic images: {found.folder!r}")
    if found.files is not None:
        leaks = ", ".join(f"{count:,} of {split}" for split, count in found.leaks.items())
        yield from _left_out("its files", found.files)
        yield Text(f"copies: {found.copies:,}; in two groups: {found.two_groups:,}; real images: {leaks}")


def _attribute(attribute: AttributeCounts) -> Table:
    table = Table(title=Text(f"Images by {attribute.name!r}"), title_justify="left")
    table.add_column(Text("value"))
    for split in attribute.counts:
        table.add_column(Text(split), justify="right")
    for number, name in enumerate(attribute.names):
        table.add_row(Text(repr(name)), *(Text(f"{counts[number]:,}") for counts in attribute.counts.values()))
    return table


def _left_out(name: str, part: LeftOut) -> Iterator[Text]:
    yield Text(f"{name}: {part.total:,}, {part.left_out:,} of them unusable")
    for reason in part.reasons:
        examples = "; ".join(
            repr(file) if text == reason.reason else f"{file!r}: {text}" for file, text in reason.examples[:3]
        )
        yield Text(f"  {reason.count:,} x {reason.reason}: {examples}")


def _table(title: str, scan: Scan, groups: dict[str, Groups]) -> Table:
    table = Table(title=Text(title), title_justify="left")
    table.add_column(Text("group (class, protected value)"))
    for split in groups:
        table.add_column(Text(split), justify="right")
    for y, target in enumerate(scan.target_names):
        for a, protected in enumerate(scan.protected_names):
            cells = [_cell(split, counts[y][a], scan.small_group) for split, counts in groups.items()]
            table.add_row(Text(f"{target!r}, {protected!r}"), *cells)
    totals = [f"{sum(map(sum, counts)):,}" for counts in groups.values()]
    table.add_section()
    table.add_row(Text("all"), *map(Text, totals))
    return table


def _cell(split: str, images: int, small_group: int) -> Text:
    if images == 0:
        return Text("none", "red")
    if split == "test" and images < small_group:
        return Text(f"{images:,} (few)", "yellow")
    return Text(f"{images:,}")


def _value(association: float | None) -> str:
    return "not defined" if association is None else f"{association:.3f}"
