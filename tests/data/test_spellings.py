"""One value in several spellings."""

from pathlib import Path

import pytest

from aimfair.base.errors import AimfairError
from aimfair.data import imagefolder, table
from aimfair.data.load import load_splits
from aimfair.data.settings import DataSettings
from aimfair.data.spellings import Spellings, folded
from tests.data.conftest import Warnings, save_image
from tests.data.test_rows import write


@pytest.mark.parametrize(
    "texts",
    [
        ("Male", "male", " MALE", "male ", "\uff2d\uff41\uff4c\uff45"),
        ("f\xe9minin", "fe\u0301minin"),
        ("true", "True", "TRUE", "1"),
        ("false", "False", "0"),
        ("<=50K", "<=50k.", "<= 50K"),
        ("New York", "new  york", "NEW\xa0YORK"),
        ("30 to 39", "30  to 39"),
        ("stra\xdfe", "STRASSE"),
    ],
)
def test_spellings_of_one_value(texts: tuple[str, ...]) -> None:
    assert len({folded(text) for text in texts}) == 1
    (found,) = Spellings.of("data.target", "x", dict.fromkeys((*texts, "other"), 3))
    assert [sorted(text for text, _ in group) for group in found.groups] == [sorted(texts)]


def test_values_that_differ() -> None:
    texts = [
        "<=50K",
        ">50K",
        "O-",
        "O+",
        "O",
        "1",
        "-1",
        "01",
        "1.5",
        "1.50",
        "30 to 39",
        "20 to 29",
        "...",
        "none",
        "no",
    ]
    texts += ["yes", "resign", "re-sign", "re sign", "re_sign", "11", "1 1", "1-1"]
    assert list(Spellings.of("data.target", "x", dict.fromkeys(texts, 1))) == []


def test_spellings_that_look_alike_are_shown_with_escapes() -> None:
    counts = {"f\xe9": 2, "fe\u0301": 1, "\xfc": 4, "\xdc": 3, "a": 9, "b": 1, "B": 1, "c": 1, "C": 1}
    (found,) = Spellings.of("data.protected", "sex", counts)
    assert str(found) == (
        "data.protected: values of 'sex' differ only in spelling (case, spaces, Unicode): 'B' (1) and 'b' (1);"
        " 'C' (1) and 'c' (1); 'fe\\u0301' (1) and 'f\\xe9' (2); and 1 more"
    )


def settings(root: Path, **changes: object) -> DataSettings:
    return DataSettings.model_validate(
        {"kind": "table", "root": root, "target": "sick", "protected": "sex", "image_size": 8, **changes}
    )


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_role_and_table(tmp_path: Path, suffix: str) -> None:
    columns = {
        "file": [f"{number}.png" for number in range(8)],
        "split": ["train", "Train", "train", "train", "val", "val", "test", "test"],
        "sick": ["yes", "Yes", "no", "no"] * 2,
        "sex": ["f", "m", "M", "f"] * 2,
        "age": ["old", "young", "OLD", "young"] * 2,
        "site": ["A", "A", "a", "B"] * 2,
        "patient": [f"{'pP'[number // 7]}{number % 7}" for number in range(8)],
    }
    write(tmp_path / f"labels{suffix}", columns)
    changes = {"intersect_with": ["age"], "audit": ["site"], "group_column": "patient", "table": f"labels{suffix}"}
    found = table.read(tmp_path, settings(tmp_path, **changes)).spellings
    assert {(one.key, one.name): one.groups for one in found} == {
        ("data.target", "sick"): ((("Yes", 2), ("yes", 2)),),
        ("data.protected", "sex"): ((("M", 2), ("m", 2)),),
        ("data.intersect_with", "age"): ((("OLD", 2), ("old", 2)),),
        ("data.audit", "site"): ((("A", 4), ("a", 2)),),
        ("data.group_column", "patient"): ((("P0", 1), ("p0", 1)),),
        ("data.split_column", "split"): ((("Train", 1), ("train", 3)),),
    }


def test_names_of_folders(tmp_path: Path) -> None:
    for split in ("train", "Train", "test"):
        files = [f"{label}/{number}.png" for number, label in enumerate(["cat", "Cat ", "dog", "dog"])]
        (tmp_path / split).mkdir()
        write(tmp_path / split / "metadata.csv", {"file_name": files, "sex": ["f", "m", "m", "f"]})
    catalogue = imagefolder.read(tmp_path, settings(tmp_path, kind="imagefolder", target="label"))
    assert catalogue.split is not None
    assert catalogue.split.tolist() == [0] * 8 + [2] * 4
    assert [(one.key, one.groups) for one in catalogue.spellings] == [
        ("data.target", ((("Cat ", 3), ("cat", 3)),)),
        ("data.split_column", ((("Train", 4), ("train", 4)),)),
    ]


def test_a_run_warns_before_it_refuses_what_follows(tmp_path: Path, log: Warnings) -> None:
    lines = ["file,split,sick,sex"]
    for number in range(12):
        save_image(tmp_path / f"{number}.png", number)
        split = ("train", "val", "test")[number // 4]
        lines.append(f"{number}.png,{split},{('True', 'False', 'true', 'False')[number % 4]},{'fm'[number % 4 // 2]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    with pytest.raises(AimfairError, match=r"data.majority: found 2 values, expected one for each of 3 target classes"):
        load_splits(settings(tmp_path), log=log)
    warning = (
        "data.target: values of 'sick' differ only in spelling (case, spaces, Unicode): 'True' (3) and 'true' (3);"
        " give each value one spelling; until then each spelling is a value of its own"
    )
    assert log.messages == [warning]
