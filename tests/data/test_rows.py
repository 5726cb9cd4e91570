"""The four kinds of tables say the same, and what cannot be a label is refused with its row."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from aimfair.base.errors import AimfairError, ConfigError
from aimfair.data.rows import header, notes, rows
from aimfair.data.settings import TABLES

COLUMNS = [("data.file_column", "file"), ("data.target", "sick"), ("data.audit", "site")]


def write(path: Path, columns: dict[str, Sequence[Any]]) -> Path:
    """A table in the form of the suffix."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    elif path.suffix == ".jsonl":
        lines = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    else:
        between = "," if path.suffix == ".csv" else "\t"
        lines = [columns, *zip(*columns.values(), strict=True)]
        path.write_text("\n".join(between.join(map(str, line)) for line in lines))
    return path


@pytest.mark.parametrize("suffix", TABLES)
def test_every_kind_says_the_same(tmp_path: Path, suffix: str) -> None:
    columns = {"age": [30, 41], "site": ["Köln", " B "], "file": ["a.png", "x/b.png"], "sick": [1, 0]}
    path = write(tmp_path / f"labels{suffix}", columns)
    assert header(path) == list(columns)
    first = 1 if suffix in (".jsonl", ".parquet") else 2
    assert list(rows(path, COLUMNS)) == [(first, ["a.png", "1", "Köln"]), (first + 1, ["x/b.png", "0", "B"])]
    with pytest.raises(ConfigError, match=r"data.audit: found 'sight', which the header of .* did you mean 'site'\?"):
        list(rows(path, [*COLUMNS[:2], ("data.audit", "sight")]))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([True, False], ["true", "false"]),
        ([1.0, 2.5], ["1", "2.5"]),
        ([-3, 2**53 + 1], ["-3", "9007199254740993"]),
        ([1e22, 0.1], ["10000000000000000000000", "0.1"]),
    ],
    ids=str,
)
def test_values_that_are_no_text(tmp_path: Path, suffix: str, values: list[object], texts: list[str]) -> None:
    path = write(tmp_path / f"labels{suffix}", {"file": ["a", "b"], "sick": values, "site": ["A", "B"]})
    assert [cells[1] for _, cells in rows(path, COLUMNS)] == texts


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("value", [None, float("nan")], ids=str)
def test_what_is_missing_is_no_text(tmp_path: Path, suffix: str, value: object) -> None:
    path = write(tmp_path / f"labels{suffix}", {"file": ["a", "b"], "sick": [1.0, value], "site": ["A", "B"]})
    assert [cells for _, cells in rows(path, COLUMNS)] == [["a", "1", "A"], ["b", "", "B"]]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("value", "found"), [(float("-inf"), "-inf"), ([1, 2], "list"), ({"x": 1}, "dict")], ids=["inf", "list", "dict"]
)
def test_values_that_are_no_labels_are_told_with_their_row(
    tmp_path: Path, suffix: str, value: object, found: str
) -> None:
    good: object = {"list": [0], "dict": {"x": 0}}.get(found, 1.0)
    columns: dict[str, Sequence[Any]] = {"file": ["a", "b"], "sick": [good, value], "site": ["A", "B"]}
    path = write(tmp_path / f"labels{suffix}", columns)
    assert list(rows(path, COLUMNS))[1] == (2, f"column 'sick' is {found}, expected a string or a number in every row")
    kept = list(rows(path, [COLUMNS[0], COLUMNS[2]]))  # a column that nobody names may hold anything
    assert [cells for _, cells in kept] == [["a", "A"], ["b", "B"]]


def test_parquet_as_pandas_and_polars_write_it(tmp_path: Path) -> None:
    """Dictionaries of texts, large texts, small integers, more than one group of rows."""
    path = tmp_path / "labels.parquet"
    table = pyarrow.table(
        {
            "file": pyarrow.array([f"{n}.png" for n in range(9)], pyarrow.large_string()),
            "sick": pyarrow.array(["yes", "no", "no"] * 3).dictionary_encode(),
            "site": pyarrow.array(np.arange(9) % 3, pyarrow.uint8()),
        }
    )
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    found = list(rows(path, COLUMNS))
    assert [number for number, _ in found] == list(range(1, 10))
    assert [cells for _, cells in found[:3]] == [["0.png", "yes", "0"], ["1.png", "no", "1"], ["2.png", "no", "2"]]


def test_a_column_twice_in_parquet(tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    table = pyarrow.table([["a"], ["x"], ["y"], ["A"]], names=["file", "sick", "sick", "site"])
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(AimfairError, match=r"labels.parquet: column 'sick' occurs 2 times, expected once"):
        list(rows(path, COLUMNS))


def test_bad_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    with pytest.raises(FileNotFoundError, match=r"labels.parquet"):
        header(path)
    path.write_bytes(b"file,sick\n")
    with pytest.raises(AimfairError, match=r"labels.parquet: cannot be read as Parquet: \S"):
        header(path)
    write(path, {"file": ["a"] * 5000, "sick": list(range(5000)), "site": ["A"] * 5000})
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + bytes(3000) + whole[3100:])
    with pytest.raises(AimfairError, match=r"labels.parquet: cannot be read as Parquet after row \d+: \S"):
        list(rows(path, COLUMNS))


def test_text_in_parquet_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    letters = pyarrow.array([b"a", b"\xff"], pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), 2, letters.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"file": ["a", "b"], "sick": text, "site": ["A", "B"]}), path)
    with pytest.raises(AimfairError, match=r"labels.parquet: cannot be read as Parquet after row 0: .*utf-8"):
        list(rows(path, COLUMNS))


def test_without_pyarrow_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(AimfairError, match=r"pyarrow is not installed; .*labels.parquet, .*: pip install pyarrow"):
        header(tmp_path / "labels.parquet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"file": "a", "sick": 1}\n', r"data.audit: found 'site', which the header of"),
        ('{"file": "a", "sick": 1, "sick": 2, "site": 2}\n', r"jsonl:1: cannot be read as JSON: duplicate key"),
        ("[1, 2]\n", r"jsonl:1: found list, expected an object"),
        ("[" * 100_000, r"jsonl:1: cannot be read as JSON: "),
        ("", r"labels.jsonl: is empty, expected an object for each image"),
        ("\udcff", r"labels.jsonl: is not UTF-8 but probably .*byte 0xff"),
    ],
)
def test_bad_jsonl_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(AimfairError, match=message):
        list(rows(path, COLUMNS))


def test_lines_of_jsonl_that_cannot_be_used_do_not_end_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(
        '{"file": "a", "sick": 1, "site": 2}\n\n{"file": "b", "sick": 1}\n{"file": "c"\n[1]\n'
        '{"file": "d", "sick": 0, "site": 3}'
    )
    found = dict(rows(path, COLUMNS))
    assert (found[1], found[3], found[6]) == (["a", "1", "2"], ["b", "1", ""], ["d", "0", "3"])
    assert str(found[4]).startswith("cannot be read as JSON: ")
    assert found[5] == "found list, expected an object"


@pytest.mark.parametrize(
    ("name", "separator", "said"),
    [
        ("labels.csv", ";", "its columns are separated by semicolons, not commas"),
        ("labels.csv", "\t", "its columns are separated by tabs, not commas"),
        ("labels.CSV", "|", "its columns are separated by vertical bars, not commas"),
        ("labels.tsv", ",", "its columns are separated by commas, not tabs"),
        ("labels.csv", ",", None),
        ("labels.TSV", "\t", None),
    ],
)
@pytest.mark.parametrize("declared", [False, True])
def test_separators_are_recognised_and_told(
    tmp_path: Path, name: str, separator: str, said: str | None, declared: bool
) -> None:
    path = tmp_path / name
    lines = [separator.join(cells) for cells in (("file", "sick", "site"), ("a.png", "0,5", "A; B"))]
    if separator in ",;":
        lines[1] = f'a.png{separator}"0,5"{separator}"A; B"'
    path.write_text("\n".join([f"sep={separator}", *lines] if declared else lines), encoding="utf-8-sig")
    assert header(path) == ["file", "sick", "site"]
    assert list(rows(path, COLUMNS)) == [(2 + declared, ["a.png", "0,5", "A; B"])]
    assert notes(path) == ([] if said is None else [f"{path}: {said}"])


def test_a_separator_that_the_header_leaves_open_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("file;sick, yes or no;site\na.png;1;A\n")
    expected = r"its columns seem to be separated by semicolons, but its header has commas too: remove those from"
    with pytest.raises(AimfairError, match=expected):
        list(rows(path, COLUMNS))


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-16", "is UTF-16, expected text in UTF-8: save it as such"),
        ("utf-16-le", "is UTF-16 without a byte order mark, or no text"),
        ("utf-32", "is UTF-32, expected text in UTF-8"),
        ("latin-1", r"is not UTF-8 but probably Windows-1252 or Latin-1 \(byte 0xf6 in .*Köln"),
        ("cp1252", r"is not UTF-8 but probably Windows-1252 or Latin-1 \(byte 0xf6 in .*Köln"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_other_encodings_are_named(tmp_path: Path, suffix: str, encoding: str, said: str) -> None:
    path = write(tmp_path / f"labels{suffix}", {"file": ["a.png", "b.png"], "sick": [0, 1], "site": ["Köln", "B"]})
    path.write_bytes(path.read_text().encode(encoding))
    with pytest.raises(AimfairError, match=rf"labels{suffix}: {said}"):
        list(rows(path, COLUMNS))


@pytest.mark.parametrize(
    ("beginning", "said"),
    [(b"PK\x03\x04", "an Excel workbook or a zip file"), (b"\x1f\x8b\x08", "compressed by gzip"), (b"PAR1", "Parquet")],
)
def test_other_files_under_the_name_of_a_table_are_named(tmp_path: Path, beginning: bytes, said: str) -> None:
    (tmp_path / "labels.csv").write_bytes(beginning + bytes(20))
    with pytest.raises(AimfairError, match=f"labels.csv: is {said}, expected text in UTF-8: save it as such"):
        header(tmp_path / "labels.csv")
