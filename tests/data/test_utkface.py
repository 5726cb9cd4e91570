import shutil
from pathlib import Path

import pytest

from aimfair.config import DataSettings
from aimfair.data import utkface
from aimfair.data.images import Splits
from aimfair.data.load import load_splits
from aimfair.errors import AimfairError
from tests.data.conftest import Warnings, save_image


def settings(root: Path, **changes: object) -> DataSettings:
    return DataSettings.model_validate(
        {"kind": "utkface", "root": root, "target": "gender", "protected": "white", "image_size": 8, **changes}
    )


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("26_0_0_20170116184751213.jpg.chip.jpg", (0, 1)),
        ("100_1_3_20170112213001988.jpg", (1, 0)),
        ("39_1_20170116174525125.jpg.chip.jpg", None),
        ("24_0_1_20170116220224657 .jpg.chip.jpg", None),
        ("55_0_0_20170116232725357jpg.chip.jpg", None),
        ("26_3_0_20170116184751213.jpg", None),
        ("26_0_5_20170116184751213.jpg", None),
        ("26_0_0_2017.jpg.png", None),
        ("\u0662_0_0_2017.jpg", None),
    ],
)
def test_names(tmp_path: Path, name: str, labels: tuple[int, int] | None) -> None:
    (tmp_path / name).touch()
    (tmp_path / "part2").mkdir()
    (tmp_path / "part2" / "1_0_0_1.jpg").touch()
    (tmp_path / "README.txt").touch()
    catalogue = utkface.read(tmp_path, settings(tmp_path))
    found = dict(zip(catalogue.files, zip(catalogue.target, catalogue.protected, strict=True), strict=True))
    assert found.pop("part2/1_0_0_1.jpg") == (0, 1)
    assert found == ({} if labels is None else {name: labels})
    assert [rejected.name for rejected in catalogue.rejected] == ([name] if labels is None else [])
    assert catalogue.rows == 2


def test_a_folder_without_such_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AimfairError, match=r"found no image named \[age\]"):
        load_splits(settings(tmp_path), 0)


def data_set(root: Path, per_group: int = 20) -> None:
    """The same number of images for each gender and each of the races 0 and 1."""
    for number in range(4 * per_group):
        gender, race = divmod(number % 4, 2)
        save_image(root / f"{20 + number}_{gender}_{race}_2017{number:04}.jpg.chip.jpg", number)


def ids(splits: Splits) -> list[set[str]]:
    return [set(part.ids) for part in (splits.train, splits.validation, splits.test)]


def test_splits(tmp_path: Path, log: Warnings) -> None:
    data_set(tmp_path)
    splits = load_splits(settings(tmp_path, bias=0.25), 0, log=log)
    # 20 of each group are cut into 14, 3 and 3; with the bias, all of two groups and a quarter of the others are taken.
    assert splits.train.group_counts(2, 2).tolist() == [[4, 14], [14, 3]]
    assert splits.validation.group_counts(2, 2).tolist() == [[1, 3], [3, 0]]
    assert splits.test.group_counts(2, 2).tolist() == [[3, 3], [3, 3]]
    train, validation, test = ids(splits)
    assert len(train | validation | test) == len(train) + len(validation) + len(test)
    assert log.messages == []


def test_seeds(tmp_path: Path) -> None:
    data_set(tmp_path)
    first = ids(load_splits(settings(tmp_path, bias=0.25), 0))
    assert ids(load_splits(settings(tmp_path, bias=0.25), 0)) == first
    train, validation, test = ids(load_splits(settings(tmp_path, bias=0.25), 1))
    assert train != first[0]
    assert [validation, test] == first[1:]
    assert ids(load_splits(settings(tmp_path, bias=0.25, seed=1), 0))[2] != first[2]


def test_copies_are_left_out_and_reported(tmp_path: Path, log: Warnings) -> None:
    data_set(tmp_path)
    whole = load_splits(settings(tmp_path, bias=0.25), 0)
    shutil.copy(tmp_path / "20_0_0_20170000.jpg.chip.jpg", tmp_path / "9_0_0_20180000.jpg.chip.jpg")
    assert ids(load_splits(settings(tmp_path, bias=0.25), 0, log=log)) == ids(whole)
    shutil.copy(tmp_path / "21_0_1_20170001.jpg.chip.jpg", tmp_path / "9_1_1_20180001.jpg.chip.jpg")
    shutil.copy(tmp_path / "25_0_1_20170005.jpg.chip.jpg", tmp_path / "9_0_0_20180005.jpg.chip.jpg")
    everywhere = set().union(*ids(load_splits(settings(tmp_path, bias=1), 0, log=log)))
    assert not any(name.startswith(("21_", "25_", "9_")) for name in everywhere)
    assert log.messages == [
        "1 of 81 images left out, copies of others: for example '9_0_0_20180000.jpg.chip.jpg'",
        "1 of 83 images left out, copies of others: for example '9_0_0_20180000.jpg.chip.jpg'",
        "4 of 83 images left out, copies with different labels: for example '21_0_1_20170001.jpg.chip.jpg'",
    ]


def test_names_beyond_the_bad_share_refuse(tmp_path: Path, log: Warnings) -> None:
    data_set(tmp_path)
    (tmp_path / "39_1_2017.jpg").touch()
    with pytest.raises(AimfairError, match=r"1 of 81 rows of .* '39_1_2017.jpg': the name is not \[age\]"):
        load_splits(settings(tmp_path), 0)
    load_splits(settings(tmp_path, max_bad_share=0.02), 0, log=log)
    assert len(log.messages) == 1
    assert log.messages[0].startswith("1 of 81 rows of")
