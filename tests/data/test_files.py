"""Files whose names in a table and on disk differ."""

import os
import unicodedata
from pathlib import Path

import pytest

from aimfair.base.log import Log
from aimfair.data import imagefolder, table
from aimfair.data.files import Files
from aimfair.data.load import list_images
from aimfair.data.settings import DataSettings
from tests.data.test_rows import write

NFC, NFD = (unicodedata.normalize(form, "\xe9\xfc") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("written", "found"),
    [
        (f"{NFC}.png", f"{NFD}.png"),
        (f"{NFD}.png", f"{NFC}.png"),
        (f"{NFD}/a.png", f"{NFC}/a.png"),
        ("a\\b\\1.png", "a/b/1.png"),
        (f"{NFC}\\1.png", f"{NFD}/1.png"),
        (".\\1.png", "1.png"),
        ("1.jpg", "1.JPG"),
        ("1.PNG", "1.Png"),
        ("Images/1.png", "images/1.png"),
        ("\uff11.png", "1.png"),
    ],
)
def test_the_only_file_that_can_be_meant_is_found(tmp_path: Path, written: str, found: str) -> None:
    (tmp_path / found).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / found).touch()
    files = Files(tmp_path)
    assert files.find(found) == found
    assert files.notes == []
    assert files.find(written) == found
    assert files.respelled == {str(Path(written)): found}
    assert files.notes[0].startswith(f"{tmp_path}: 1 files are named in another way on disk (case, Unicode form, or /")
    assert files.notes[0].isprintable()


def test_the_name_as_it_is_written_goes_before_others(tmp_path: Path) -> None:
    for name in ("a.png", "A.png", "x\\a.png", "y.png"):
        (tmp_path / name).touch()
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.png").touch()
    files = Files(tmp_path)
    for name in ("a.png", "A.png", "x\\a.png", "x/a.png", "no.png", "z\\no.png"):
        assert files.find(name) == name
    assert files.respelled == {}


def test_a_name_for_several_files_is_refused(tmp_path: Path) -> None:
    for name in (f"a{NFC}.png", f"a{NFD}.png"):
        (tmp_path / name).touch()
    with pytest.raises(
        ValueError, match=r"found no file 'A.*', but 'ae\\u0301.*' and 'a\\xe9.*: write the name as it is"
    ):
        Files(tmp_path).find(f"A{NFC}.png")


@pytest.mark.parametrize("written", ["a/1", "a/1.jpg", "A\\1.webp"])
def test_another_suffix_is_explained(tmp_path: Path, written: str) -> None:
    (tmp_path / "a").mkdir()
    for name in ("1.PNG", "1.txt"):
        (tmp_path / "a" / name).touch()
    with pytest.raises(ValueError, match=r"found no file '.*', but 'a/1.PNG': write the suffix as it is on disk"):
        Files(tmp_path).find(written)
    assert Files(tmp_path).find("a/2.png") == "a/2.png"


@pytest.mark.parametrize("name", ["..\\a.png", "x\\..\\..\\a.png", "\\a.png"])
def test_backslashes_lead_to_no_place_outside(tmp_path: Path, name: str) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match=r"expected a path inside the data set's folder"):
        Files(tmp_path / "root").find(name)


def test_only_folders_on_the_way_to_a_missing_file_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("A", "a", "b", "b/c"):
        (tmp_path / folder).mkdir()
    (tmp_path / "a" / "1.png").touch()
    listed: list[str] = []
    listdir = os.listdir

    def note(path: Path) -> list[str]:
        listed.append(path.relative_to(tmp_path).as_posix())
        return listdir(path)

    monkeypatch.setattr("os.listdir", note)
    files = Files(tmp_path)
    for number in range(3):
        assert files.find(f"A/no{number}.png") == f"A/no{number}.png"
    assert files.find("A/1.png") == "a/1.png"
    assert sorted(listed) == [".", "A", "a"]


def settings(root: Path, kind: str) -> DataSettings:
    return DataSettings.model_validate({"kind": kind, "root": root, "target": "sick", "protected": "sex"})


def test_a_table_tells_what_it_found(tmp_path: Path) -> None:
    names = [f"{NFC}{number}.png" for number in range(6)]
    for name in names:
        (tmp_path / unicodedata.normalize("NFD", name)).touch()
    splits = ["train", "train", "val", "val", "test", "test"]
    columns = {"file": names, "split": splits, "sick": [0, 1] * 3, "sex": ["f", "m", "m"] * 2}
    write(tmp_path / "labels.csv", columns)
    told: list[str] = []
    catalogue = list_images(settings(tmp_path, "table"), Log(None, show=told.append))
    assert all((tmp_path / file).exists() for file in catalogue.files)
    assert told == list(catalogue.notes)
    assert "6 files are named in another way on disk" in told[0]


def test_two_rows_of_one_file_are_seen(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a/1.png", "a/2.png"):
        (tmp_path / name).touch()
    columns = {
        "file": ["a/1.png", "a\\1.png", "a/2.png"],
        "split": ["train"] * 3,
        "sick": [0, 0, 1],
        "sex": list("ffm"),
    }
    write(tmp_path / "labels.csv", columns)
    (rejected,) = table.read(tmp_path, settings(tmp_path, "table")).rejected
    assert rejected.reason == "'a/1.png' is also at labels.csv:2"


def test_an_image_folder_does_not_reject_what_it_found(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for name in ("1.JPG", f"{NFD}.png", "3.png"):
        (tmp_path / "train" / name).touch()
    columns = {"file_name": ["1.jpg", f"{NFC}.png", "3.png"], "sick": [0, 1, 1], "sex": list("ffm")}
    write(tmp_path / "train" / "metadata.csv", columns)
    catalogue = imagefolder.read(tmp_path, settings(tmp_path, "imagefolder"))
    assert set(catalogue.files) == {"train/1.JPG", f"train/{NFD}.png", "train/3.png"}
    assert catalogue.rejected == ()
