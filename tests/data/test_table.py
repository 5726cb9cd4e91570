from pathlib import Path

import pytest

from aimfair.base.errors import AimfairError, ConfigError
from aimfair.data import table
from aimfair.data.catalogue import Catalogue
from aimfair.data.load import load_splits
from aimfair.data.settings import DataSettings

GOOD = """file,age,split,smile,sex
b.png,30,train,yes,m
sub/a.png,41,train,no,f
./c.png,25,val,no,f

d.png,25,test,yes,f
"""


def read(root: Path, text: str | bytes, target: str = "smile", protected: str = "sex") -> Catalogue:
    (root / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return table.read(root, DataSettings(kind="table", root=root, target=target, protected=protected))


def test_a_table(tmp_path: Path) -> None:
    catalogue = read(tmp_path, GOOD)
    assert catalogue.files == ("b.png", "sub/a.png", "c.png", "d.png")
    assert catalogue.split is not None
    assert catalogue.split.tolist() == [0, 0, 1, 2]
    assert catalogue.target_names == ("no", "yes")
    assert catalogue.target.tolist() == [1, 0, 0, 1]
    assert catalogue.protected_names == ("f", "m")
    assert catalogue.protected.tolist() == [1, 0, 0, 0]
    assert (catalogue.rows, catalogue.rejected) == (4, ())


def test_as_spreadsheets_save_it(tmp_path: Path) -> None:
    """Byte order mark, CRLF, quotes and blanks around values."""
    text = GOOD.replace("b.png", '"b.png"').replace(",yes", ", yes ").replace("\n", "\r\n")
    catalogue = read(tmp_path, b"\xef\xbb\xbf" + text.encode())
    assert catalogue.files[0] == "b.png"
    assert catalogue.target_names == ("no", "yes")


def test_whole_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD.replace("25", "100"), target="age").target_names == ("30", "41", "100")
    assert read(tmp_path, GOOD.replace("25", "x"), target="age").target_names == ("30", "41", "x")


def test_the_order_of_rows_has_no_meaning(tmp_path: Path) -> None:
    header, *rows = GOOD.splitlines()
    assert read(tmp_path, "\n".join([header, *rows[::-1]])).files == read(tmp_path, GOOD).files


def test_a_row_that_is_there_twice_is_counted(tmp_path: Path) -> None:
    catalogue = read(tmp_path, GOOD + "d.png,26,test,yes,f\n")
    assert len(catalogue.files) == 4
    assert [tuple(rejected) for rejected in catalogue.rejected] == [("labels.csv:7", "'d.png' is also at labels.csv:6")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("e.png,26,test,yes", "found 4 cells, expected 5 as in the header"),
        ("e.png,26,holdout,yes,f", "found split 'holdout', expected one of train, val, test"),
        ('e.png,26,test,yes,"f\nm"', r"'sex' is 'f\nm', expected printable text"),
        ("../e.png,26,test,yes,f", "found file '../e.png', expected a path inside the data set's folder"),
        ("x/../../e.png,26,test,yes,f", "found file 'x/../../e.png', expected a path inside the data set's folder"),
        ("/etc/e.png,26,test,yes,f", "found file '/etc/e.png', expected a path inside the data set's folder"),
        ("x//../d.png,26,test,no,f", "found file 'x//../d.png', expected a path inside the data set's folder"),
        ("e.png,26,test,,f", "'smile' is '', expected a value in every row"),
        (",26,test,yes,f", "found file '', expected a path inside the data set's folder"),
        *(
            (f"e.png,26,test,{missing},f", f"'smile' is '{missing}', which counts as missing (data.missing)")
            for missing in ("NaN", "NA", "N/A", "n/a", "None", "-", "Null", "<NA>")
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_left_out_and_counted(tmp_path: Path, row: str, reason: str) -> None:
    """One policy for all that a row can lack: reading goes on, and data.max_bad_share is for all of them."""
    catalogue = read(tmp_path, GOOD + row + "\nf.png,26,test,no,m\n")
    assert catalogue.files == ("b.png", "sub/a.png", "c.png", "d.png", "f.png")
    line = 8 if "\n" in row else 7
    assert [tuple(one) for one in catalogue.rejected] == [(f"labels.csv:{line}", reason)]
    assert catalogue.rows == 6
    with pytest.raises(AimfairError, match=rf"1 of 6 rows of .*labels.csv:{line}'"):
        load_splits(DataSettings(kind="table", root=tmp_path, target="smile", protected="sex"))


def test_none_may_be_a_class(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD.replace(",no,", ",none,")).target_names == ("none", "yes")


def test_what_stands_for_a_missing_value_can_be_set(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(GOOD + "e.png,-,test,yes,Not asked\nf.png,9,test,no,X\ng.png,9,test,no,x\n")
    settings = DataSettings(kind="table", root=tmp_path, target="smile", protected="sex", audit=["age"])
    changed = settings.model_copy(update={"missing": ["not asked", "X"]})
    catalogue = table.read(tmp_path, changed)
    assert [one.reason for one in catalogue.rejected] == [
        f"'sex' is {text!r}, which counts as missing (data.missing)" for text in ("Not asked", "X")
    ]
    assert catalogue.protected_names == ("f", "m", "x")
    assert table.read(tmp_path, settings).labels.attributes["age"].names[-1] == "(unknown)"
    kept = table.read(tmp_path, settings.model_copy(update={"missing": []}))
    assert "-" in kept.labels.attributes["age"].names


def test_a_refusal_names_the_rows_that_are_left_out(tmp_path: Path) -> None:
    """They may be what it lacks: here "-" is a class."""
    text = GOOD.replace(",no,", ",-,")
    expected = (
        r"'smile' has 1 value, yes, expected two or more; 2 of 4 rows are left out: 'labels.csv:3' and 1 more:"
        r" 'smile' is '-', which counts as missing \(data.missing\)$"
    )
    with pytest.raises(ConfigError, match=expected):
        read(tmp_path, text)
    settings = DataSettings(kind="table", root=tmp_path, target="smile", protected="sex", missing=["na"])
    assert table.read(tmp_path, settings).target_names == ("-", "yes")


@pytest.mark.parametrize("row", ["d.png,26,test,no,f", ".//d.png,26,train,yes,f"], ids=["label", "split"])
def test_of_rows_that_contradict_each_other_none_is_taken(tmp_path: Path, row: str) -> None:
    catalogue = read(tmp_path, f"{GOOD}{row}\nd.png,25,test,yes,f\ne.png,25,test,yes,f\n")
    assert catalogue.files == ("b.png", "sub/a.png", "c.png", "e.png")
    reason = "'d.png' is at labels.csv:6 and labels.csv:7, with different values"
    assert [tuple(one) for one in catalogue.rejected] == [(f"labels.csv:{line}", reason) for line in (6, 7, 8)]


def test_what_audit_does_not_know_is_a_value_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(GOOD.replace("b.png,30", "b.png,N/A"))
    settings = DataSettings(kind="table", root=tmp_path, target="smile", protected="sex", audit=["age"])
    catalogue = table.read(tmp_path, settings)
    assert catalogue.files == ("b.png", "sub/a.png", "c.png", "d.png")
    ages = catalogue.labels.attributes["age"]
    assert ages.names == ("25", "41", "(unknown)")
    assert ages.values.tolist() == [2, 1, 0, 0]
    crossed = DataSettings(kind="table", root=tmp_path, target="smile", protected="age")
    assert [one.reason for one in table.read(tmp_path, crossed).rejected] == [
        "'age' is 'N/A', which counts as missing (data.missing)"
    ]


def test_whole_numbers_are_the_same_however_they_are_written(tmp_path: Path) -> None:
    """pandas writes the whole numbers of a column with gaps as 1.0."""
    text = GOOD.replace("yes", "1.0").replace("no", "0")
    assert read(tmp_path, text).target_names == ("0", "1")
    assert read(tmp_path, text.replace("1.0", "1.5")).target_names == ("0", "1.5")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "e.png,26,dev,yes,f\n", r"labels.csv: found splits 'dev' and 'val', expected one 'val'"),
        (GOOD.splitlines()[0], r"labels.csv: found no rows, expected one for each image"),
        ("", r"labels.csv: is empty, expected a header and a row for each image"),
        (
            GOOD.splitlines()[0] + "\n" + 3 * "e.png,26,test,,f\n",
            r"labels.csv: none of 3 rows can be used: 'labels.csv:2' and 2 more: 'smile' is ''",
        ),
        (GOOD.replace("age", "sex"), r"labels.csv: column 'sex' occurs 2 times"),
        (GOOD + '"e.png,26,test,yes,f\n', r"labels.csv: cannot be read as a table .* unexpected end of data"),
        (b"file,split,smile,sex\n\xff.png,train,yes,f\n", r"labels.csv: is not UTF-8 but .*byte 0xff"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(AimfairError, match=message):
        read(tmp_path, text)


def test_unknown_columns_are_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"data.target: found 'smiles', which .*labels.csv .*; did you mean 'smile'\?"
    ):
        read(tmp_path, GOOD, target="smiles")
    with pytest.raises(
        ConfigError, match=r"data.split_column: found 'split', which .*expected one of file, age, smile"
    ):
        read(tmp_path, "file,age,smile,sex\n")


def test_a_column_in_another_unicode_form_is_shown_with_escapes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"found 'f\\xe9', which .* did you mean 'fe\\u0301'\?"):
        read(tmp_path, GOOD.replace("smile", "fe\u0301"), target="f\xe9")


def test_a_missing_table_next_to_others_names_them(tmp_path: Path) -> None:
    for name in ("Labels.CSV", "faces.tsv", "notes.txt"):
        (tmp_path / name).touch()
    expected = r"data.table: .*labels.csv does not exist, but Labels.CSV, faces.tsv; name one of them"
    with pytest.raises(ConfigError, match=expected):
        table.read(tmp_path, DataSettings(kind="table", root=tmp_path))
    (tmp_path / "Labels.CSV").write_text(GOOD)
    settings = DataSettings(kind="table", root=tmp_path, table="Labels.CSV", target="smile", protected="sex")
    assert len(table.read(tmp_path, settings).files) == 4


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev", "Val", "DEV"])
def test_names_of_splits(tmp_path: Path, name: str) -> None:
    text = GOOD.replace(",val,", f",{name},").replace(",train,", ",Training,").replace(",test,", ",testing,")
    catalogue = read(tmp_path, text)
    assert catalogue.split is not None
    assert catalogue.split.tolist() == [0, 0, 1, 2]


def test_a_file_that_cannot_be_named_is_refused(tmp_path: Path) -> None:
    """Half of a pair of surrogates, which JSON may hold, but no path."""
    row = '{"file": "\\ud800.png", "split": "train", "smile": 1, "sex": 0}'
    (tmp_path / "labels.jsonl").write_text(row)
    settings = DataSettings(kind="table", root=tmp_path, table="labels.jsonl", target="smile", protected="sex")
    with pytest.raises(AimfairError, match=r"labels.jsonl:1': found file '\\ud800.png', expected a path inside"):
        table.read(tmp_path, settings)


def test_columns_and_table_of_other_names(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    text = GOOD.replace("file", "path").replace("split", "fold").replace(",", "\t")
    (tmp_path / "lists" / "faces.tsv").write_text(text)
    settings = DataSettings(
        kind="table",
        root=tmp_path,
        table="lists/faces.tsv",
        file_column="path",
        split_column="fold",
        target="smile",
        protected="sex",
        audit=["age"],
    )
    catalogue = table.read(tmp_path, settings)
    assert catalogue.files == ("b.png", "sub/a.png", "c.png", "d.png")  # in root, not beside the table
    assert catalogue.labels.attributes["age"].names == ("25", "30", "41")
    assert catalogue.split is not None
    without = table.read(tmp_path, settings.model_copy(update={"split_column": None}))
    assert without.split is None
    assert without.files == ("b.png", "c.png", "d.png", "sub/a.png")


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    expected = r"^data.table: .*labels.csv does not exist, nor any other table in its folder$"
    with pytest.raises(ConfigError, match=expected):
        table.read(tmp_path, DataSettings(kind="table", root=tmp_path))
    with pytest.raises(ConfigError, match=r"^data.table: .*lists/labels.csv does not exist, nor any other table"):
        table.read(tmp_path, DataSettings(kind="table", root=tmp_path, table="lists/labels.csv"))
