import shutil
from pathlib import Path

import pytest

from aimfair.base.errors import AimfairError
from aimfair.base.log import Log
from aimfair.data import utkface
from aimfair.data.images import Splits
from aimfair.data.load import load_splits
from aimfair.data.settings import DataSettings
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
        ("26_0_0_20170116184751213.JPG", (0, 1)),
        ("26_0_0_20170116184751213.Jpg.chip.JPG", (0, 1)),
        ("26_0_0_20170116184751213.chip.jpg", (0, 1)),
        ("26_0_0_20170116184751213.jpeg", (0, 1)),
        ("26_0_0_20170116184751213.Png", (0, 1)),
        ("0_0_0_20170116184751213.jpg", (0, 1)),
        ("116_0_0_20170116184751213.jpg", (0, 1)),
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
    (tmp_path / "part2" / "99_1_1_1.jpg").touch()
    catalogue = utkface.read(tmp_path, settings(tmp_path))
    found = dict(zip(catalogue.files, zip(catalogue.target, catalogue.protected, strict=True), strict=True))
    assert found.pop("part2/1_0_0_1.jpg") == (0, 1)
    assert found.pop("part2/99_1_1_1.jpg") == (1, 0)
    assert found == ({} if labels is None else {name: labels})
    assert [rejected.name for rejected in catalogue.rejected] == ([name] if labels is None else [])
    assert catalogue.rows == 3


@pytest.mark.parametrize(
    ("attribute", "names", "values"),
    [
        ("gender", ("male", "female"), [0, 1, 0, 1, 0, 1, 0, 1]),
        ("white", ("not white", "white"), [1, 0, 0, 0, 0, 1, 0, 0]),
        ("race", ("white", "black", "Asian", "Indian", "other"), [0, 1, 2, 3, 4, 0, 1, 2]),
        ("age", ("under 20", "20 to 39", "40 to 59", "60 and over"), [0, 0, 1, 1, 2, 2, 3, 3]),
    ],
)
def test_attributes_in_any_role(tmp_path: Path, attribute: str, names: tuple[str, ...], values: list[int]) -> None:
    ages = (1, 19, 20, 39, 40, 59, 60, 116)
    for number, age in enumerate(ages):
        (tmp_path / f"{age}_{number % 2}_{number % 5}_2017.jpg").touch()
    numbers = {f"{age}_{number % 2}_{number % 5}_2017.jpg": number for number, age in enumerate(ages)}
    other = "age" if attribute == "gender" else "gender"
    for changes in (
        {"target": attribute, "protected": other},
        {"target": other, "protected": attribute, "majority": [0] * 4},
    ):
        catalogue = utkface.read(tmp_path, settings(tmp_path, **changes))
        found = catalogue.labels.target if changes["target"] == attribute else catalogue.labels.protected
        assert found.names == names
        assert found.values.tolist() == [values[numbers[file]] for file in catalogue.files]


def test_impossible_values_are_refused_by_count(tmp_path: Path) -> None:
    names = ["117_0_0_1.jpg", "-1_0_0_1.jpg", "999_1_0_1.jpg.chip.jpg", "999_0_0_2.jpg", "26_2_0_1.jpg", "26_0_5_1.jpg"]
    for name in [*names, "1_0_0_1.jpg", "99_1_1_1.jpg"]:
        (tmp_path / name).touch()
    catalogue = utkface.read(tmp_path, settings(tmp_path))
    assert catalogue.files == ("1_0_0_1.jpg", "99_1_1_1.jpg")
    assert {one.name: one.reason for one in catalogue.rejected} == {
        "117_0_0_1.jpg": "the age is 117, expected 0 to 116",
        "-1_0_0_1.jpg": "the age is -1, expected 0 to 116",
        "999_1_0_1.jpg.chip.jpg": "the age is 999, expected 0 to 116",
        "999_0_0_2.jpg": "the age is 999, expected 0 to 116",
        "26_2_0_1.jpg": "the gender is 2, expected 0 to 1",
        "26_0_5_1.jpg": "the race is 5, expected 0 to 4",
    }
    expected = r"6 of 8 rows of .*: '999_0_0_2.jpg' and 1 more: the age is 999, expected 0 to 116; '-1_0_0_1.jpg'"
    with pytest.raises(AimfairError, match=expected):
        load_splits(settings(tmp_path))


def test_a_refusal_names_the_files_that_are_left_out(tmp_path: Path) -> None:
    for name in ("1_0_0_1.jpg", "99_0_1_1.jpg", "200_1_0_1.jpg"):
        (tmp_path / name).touch()
    expected = r"'gender' has 1 value, male, expected two or more; 1 of 3 files are left out: '200_1_0_1.jpg': the age"
    with pytest.raises(AimfairError, match=expected):
        load_splits(settings(tmp_path))
    (tmp_path / "1_0_0_1.jpg").unlink()
    (tmp_path / "99_0_1_1.jpg").unlink()
    with pytest.raises(AimfairError, match=r"no image named .*; 1 of 1 files are left out: '200_1_0_1.jpg': the age"):
        load_splits(settings(tmp_path))


def test_a_folder_without_such_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AimfairError, match=r"found no image named \[age\]"):
        load_splits(settings(tmp_path))


def data_set(root: Path, per_group: int = 20) -> None:
    """The same number of images for each gender and each of the races 0 and 1."""
    for number in range(4 * per_group):
        gender, race = divmod(number % 4, 2)
        save_image(root / f"{20 + number}_{gender}_{race}_2017{number:04}.jpg.chip.jpg", number)


def ids(splits: Splits) -> list[set[str]]:
    return [set(part.ids) for part in (splits.train, splits.validation, splits.test)]


def test_splits(tmp_path: Path, log: Warnings) -> None:
    data_set(tmp_path)
    splits = load_splits(settings(tmp_path, minority_ratio=0.25), log=log)
    # 20 of each group are cut into 14, 3 and 3; with the bias, all of two groups and a quarter of the others are taken.
    assert splits.train.group_counts(2, 2).tolist() == [[4, 14], [14, 3]]
    assert splits.validation.group_counts(2, 2).tolist() == [[1, 3], [3, 0]]
    assert splits.test.group_counts(2, 2).tolist() == [[3, 3], [3, 3]]
    train, validation, test = ids(splits)
    assert len(train | validation | test) == len(train) + len(validation) + len(test)
    assert log.messages == []


def test_what_balance_costs_the_test_set_is_told(tmp_path: Path) -> None:
    data_set(tmp_path)
    for number in range(100, 120):
        save_image(tmp_path / f"{number - 10}_0_0_2018{number}.jpg", number)
    save_image(tmp_path / "._30_0_0_2018.jpg", 1)  # as macOS leaves them: no image of its own
    told: list[str] = []
    splits = load_splits(settings(tmp_path, minority_ratio=0.25), log=Log(None, show=told.append))
    assert splits.test.group_counts(2, 2).tolist() == [[3, 3], [3, 3]]
    assert told == [
        "the balanced test set has 12 of the 15 images of its split: each group is as large as the smallest"
        "; 3 are not used"
    ]


def test_seeds(tmp_path: Path) -> None:
    data_set(tmp_path)
    first = ids(load_splits(settings(tmp_path, minority_ratio=0.25)))
    assert ids(load_splits(settings(tmp_path, minority_ratio=0.25))) == first
    other = ids(load_splits(settings(tmp_path, minority_ratio=0.25, seed=1)))
    assert all(one != before for one, before in zip(other, first, strict=True))


def test_five_races_by_two_genders_and_ages_to_look_at(tmp_path: Path) -> None:
    for number in range(400):
        race, gender = divmod(number % 10, 2)
        age = 10 + 20 * (number // 10 % 4)
        save_image(tmp_path / f"{age}_{gender}_{race}_2017{number:04}.jpg", number)
    changes = {
        "target": "gender",
        "protected": "race",
        "audit": ["age", "white"],
        "majority": [0, 4],
        "minority_ratio": 0.5,
    }
    splits = load_splits(settings(tmp_path, **changes, validation_share=0.2, test_share=0.25))
    # 40 of each group are cut into 22, 8 and 10.
    assert splits.train.group_counts(2, 5).tolist() == [[22, 11, 11, 11, 11], [11, 11, 11, 11, 22]]
    assert splits.validation.group_counts(2, 5).tolist() == [[8, 4, 4, 4, 4], [4, 4, 4, 4, 8]]
    assert splits.test.group_counts(2, 5).tolist() == [[10] * 5] * 2
    assert list(splits.attribute_names) == ["age", "white"]
    for part in (splits.train, splits.validation, splits.test):
        ages = [int(name.partition("_")[0]) // 20 for name in part.ids]
        assert part.attributes["age"].tolist() == ages
        assert (part.attributes["white"] == (part.protected == 0)).all()


def test_an_intersection_lacks_what_is_not_there(tmp_path: Path) -> None:
    """White people of another race than white do not exist: there is no biased set of them."""
    data_set(tmp_path)
    with pytest.raises(
        AimfairError,
        match=r"biased training set with minority ratio 0.25: group \(y=0, a=0\), 'male' by 'not white, white',"
        r" has 0 images and needs 1; .*; and 11 more groups; a group without images makes it impossible",
    ):
        load_splits(settings(tmp_path, minority_ratio=0.25, intersect_with=["race"]))


def test_copies_are_left_out_and_reported(tmp_path: Path, log: Warnings) -> None:
    data_set(tmp_path)
    whole = load_splits(settings(tmp_path, minority_ratio=0.25))
    shutil.copy(tmp_path / "20_0_0_20170000.jpg.chip.jpg", tmp_path / "9_0_0_20180000.jpg.chip.jpg")
    assert ids(load_splits(settings(tmp_path, minority_ratio=0.25), log=log)) == ids(whole)
    shutil.copy(tmp_path / "21_0_1_20170001.jpg.chip.jpg", tmp_path / "9_1_1_20180001.jpg.chip.jpg")
    shutil.copy(tmp_path / "25_0_1_20170005.jpg.chip.jpg", tmp_path / "9_0_0_20180005.jpg.chip.jpg")
    everywhere = set().union(*ids(load_splits(settings(tmp_path, minority_ratio=1), log=log)))
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
        load_splits(settings(tmp_path))
    load_splits(settings(tmp_path, max_bad_share=0.02), log=log)
    assert len(log.messages) == 1
    assert log.messages[0].startswith("1 of 81 rows of")
