"""Tables as hospitals have them: many classes, several protected attributes, combinations that nobody has."""

from pathlib import Path

import numpy as np
import pytest

from aimfair.base.errors import AimfairError
from aimfair.data.load import load_splits
from aimfair.data.settings import DataSettings
from tests.data.conftest import Warnings, save_image
from tests.data.test_rows import write

FINDINGS = tuple(f"finding {number}" for number in range(10))
SEXES, AGES, SITES = ("F", "M"), ("0-39", "40-64", "65+"), ("clinic", "north", "south")
SPLIT = ("train", "train", "train", "val", "test")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """900 scans; nobody of 65 or more was seen at the clinic, and only every third man in the north."""
    root = tmp_path_factory.mktemp("scans")
    columns: dict[str, list[object]] = {name: [] for name in ("path", "finding", "sex", "age", "site", "fold", "score")}
    rng = np.random.default_rng(0)
    for number in range(900):
        age, site = AGES[number // 10 % 3], SITES[number // 30 % 3]
        sex = SEXES[number // 90 % 2]
        site = "south" if (age, site) == ("65+", "clinic") or ((sex, site) == ("M", "north") and number % 3) else site
        columns["path"].append(f"scans/{number}.png")
        values = (FINDINGS[number % 10], sex, age, site, SPLIT[number // 180], float(rng.random()))
        for name, value in zip(("finding", "sex", "age", "site", "fold", "score"), values, strict=True):
            columns[name].append(value)
        save_image(root / f"scans/{number}.png", number, (8, 8))
    write(root / "labels.parquet", columns)
    write(root / "labels.jsonl", columns)
    return root


def settings(root: Path, **changes: object) -> DataSettings:
    known = {"table": "labels.parquet", "file_column": "path", "split_column": "fold", "image_size": 8}
    known |= {"target": "finding", "protected": "sex", "majority": [0, 1] * 5}
    return DataSettings.model_validate({"kind": "table", "root": root, **known, **changes})


def test_ten_findings_by_sex_and_further_attributes_to_look_at(root: Path, log: Warnings) -> None:
    splits = load_splits(settings(root, audit=["age", "site"]), log=log)
    assert splits.target_names == FINDINGS
    assert splits.protected_names == SEXES
    assert splits.attribute_names == {"age": AGES, "site": SITES}
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [540, 180, 180]
    for part in (splits.train, splits.validation, splits.test):
        numbers = np.array([int(Path(name).stem) for name in part.ids])
        np.testing.assert_array_equal(part.attributes["age"], numbers // 10 % 3)
        np.testing.assert_array_equal(part.target, numbers % 10)
    assert log.messages == []


def test_the_same_from_another_table(root: Path) -> None:
    one, other = (
        load_splits(settings(root, table=table, intersect_with=["age"])) for table in ("labels.parquet", "labels.jsonl")
    )
    assert one.test.ids == other.test.ids
    np.testing.assert_array_equal(one.test.protected, other.test.protected)
    assert one.attribute_names == other.attribute_names


def test_an_intersection_with_a_combination_that_nobody_has(root: Path) -> None:
    changes = {"protected": "age", "intersect_with": ["site"], "audit": ["sex"], "majority": [0] * 10}
    splits = load_splits(settings(root, **changes))
    assert len(splits.protected_names) == 9
    assert list(splits.attribute_names) == ["age", "site", "sex"]
    counts = splits.train.group_counts(10, 9)
    nobody = splits.protected_names.index("65+, clinic")
    assert (counts.sum(axis=0) == 0).nonzero()[0].tolist() == [nobody]
    with pytest.raises(
        AimfairError,
        match=r"biased training set of 40 with minority ratio 0.9: group \(y=0, a=6\), 'finding 0' by '65\+, clinic',"
        r" has 0 images and needs 1; .*; a group without images makes it impossible",
    ):
        load_splits(settings(root, **changes, train_images=40, minority_ratio=0.9))


def test_chance_splits_what_has_no_splits(root: Path) -> None:
    changes = {"split_column": None, "intersect_with": ["age"], "majority": [0, 5] * 5, "audit": ["site"]}
    splits = load_splits(settings(root, **changes, validation_share=0.2, test_share=0.3))
    whole = sum(part.group_counts(10, 6) for part in (splits.train, splits.validation, splits.test))
    np.testing.assert_array_equal(whole, np.full((10, 6), 15))
    for part, of_each in ((splits.validation, 9), (splits.test, 13)):  # of 45 of each class and sex
        by_sex = part.group_counts(10, 6).reshape(10, 2, 3).sum(axis=2)
        assert by_sex.tolist() == [[of_each] * 2] * 10
    biased = load_splits(
        settings(root, **changes, minority_ratio=0.25, train_images=90, validation_share=0.2, test_share=0.3)
    )
    counts = biased.train.group_counts(10, 6)
    assert counts.sum() == 90
    assert all(row[0 if y % 2 == 0 else 5] == 4 for y, row in enumerate(counts.tolist()))
    assert set(np.delete(counts, [0, 5], axis=1).ravel()) == {1}
    assert biased.test.ids == splits.test.ids


def test_a_score_is_no_protected_attribute(root: Path) -> None:
    with pytest.raises(
        AimfairError, match=r"data.audit: 'score' has 900 values, such as '0\.\d+' and .*names or bands"
    ):
        load_splits(settings(root, audit=["score"]))
