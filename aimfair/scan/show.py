"""Prints a scan. Names of files, classes and values are printed as ``repr`` writes them."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from aimfair.scan.results import AttributeCounts, Groups, Imported, LeftOut, Scan

_COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def show(scan: Scan, console: Console) -> None:
    """Prints the facts, then what a run would use, then the problems."""

    def line(text: str, style: str = "") -> None:
        console.print(Text(text, style), soft_wrap=True)

    where = f", {scan.root!r}" if scan.root is not None else ", generated, so there are no files"
    line(f"{scan.kind}{where}", "bold")
    line(f"target {scan.target!r}, protected {scan.protected!r}")
    for name, part in (("rows", scan.rows), ("files", scan.files)):
        if part is not None:
            for text in _left_out(name, part):
                line(text)
    if scan.images is not None:
        found = scan.images
        formats = ", ".join(f"{count:,} {name}" for name, count in found.formats.items())
        line(f"images: {formats}; {found.grey:,} of them grey")
        for side, extent in (("width", found.width), ("height", found.height)):
            line(f"{side}: {extent.least:g} to {extent.greatest:g} pixels, median {extent.median:g}")
        line(f"not square: {found.not_square:,}; aspect ratios up to {found.elongation.greatest:.3g}")
    if scan.duplicates is not None:
        copies = scan.duplicates
        line(
            f"images in several files: {copies.within.images:,} harmless,"
            f" {copies.contradictory.images:,} with different labels, {copies.train_val.images:,} in training and"
            f" validation, {copies.test.images:,} in the test set and elsewhere"
        )
        if copies.near is not None:
            line(f"similar images in different splits: {copies.near.pairs:,}")
    for attribute in scan.attributes:
        console.print(_attribute(attribute))
    if scan.groups != scan.taken.groups:
        console.print(_table("Decodable images", scan, scan.groups))
        line(f"association of class and protected value (Cramer's V): {_value(scan.association)}")
    if scan.taken.groups is not None:
        console.print(_table("What a run would use", scan, scan.taken.groups))
        line(f"association of class and protected value in its training images: {_value(scan.taken.association)}")
    if scan.imported is not None:
        for text in _imported(scan.imported):
            line(text)
        if scan.imported.found is not None and scan.imported.usable is not None:
            counts = {"found": scan.imported.found, "can be used": scan.imported.usable}
            console.print(_table("Synthetic images in generate.folder", scan, counts))
    for warning in scan.taken.warnings:
        line(f"a run would warn: {warning}", "dim")
    for problem in scan.problems:
        console.print(Text(f"{problem.level}: ", _COLOURS[problem.level]) + Text(problem.what), soft_wrap=True)
        line(f"  -> {problem.advice}")
    if not scan.problems:
        line("no problems found")


def _imported(found: Imported) -> list[str]:
    lines = [f"synthetic images: {found.folder!r}"]
    if found.files is not None:
        leaks = ", ".join(f"{count:,} of {split}" for split, count in found.leaks.items())
        lines += [
            *_left_out("its files", found.files),
            f"copies: {found.copies:,}; in two groups: {found.two_groups:,}; real images: {leaks}",
        ]
    return lines


def _attribute(attribute: AttributeCounts) -> Table:
    table = Table(title=Text(f"Images by {attribute.name!r}"), title_justify="left")
    table.add_column(Text("value"))
    for split in attribute.counts:
        table.add_column(Text(split), justify="right")
    for number, name in enumerate(attribute.names):
        table.add_row(Text(repr(name)), *(Text(f"{counts[number]:,}") for counts in attribute.counts.values()))
    return table


def _left_out(name: str, part: LeftOut) -> list[str]:
    lines = [f"{name}: {part.total:,}, {part.left_out:,} of them unusable"]
    for reason in part.reasons:
        examples = "; ".join(f"{file!r}: {text}" for file, text in reason.examples[:3])
        lines.append(f"  {reason.count:,} x {reason.reason}: {examples}")
    return lines


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
