"""Image folders in the layouts of Hugging Face's datasets."""

from collections.abc import Callable
from pathlib import Path

import pytest

from aimfair.base.errors import AimfairError, ConfigError
from aimfair.data import imagefolder
from aimfair.data.catalogue import Catalogue
from aimfair.data.images import Splits
from aimfair.data.load import load_splits
from aimfair.data.settings import DataSettings
from tests.data.conftest import Warnings, save_image
from tests.data.test_rows import write

IMAGES = {"train": 16, "validation": 8, "test": 8}
CLASSES, SEXES, SITES = ("cat", "dog"), ("f", "m"), ("A", "B", "C")


def settings(root: Path, **changes: object) -> DataSettings:
    return DataSettings.model_validate(
        {"kind": "imagefolder", "root": root, "target": "label", "protected": "sex", "image_size": 8, **changes}
    )


def data_set(
    root: Path, *, splits: bool = True, above: bool = False, suffix: str = ".csv", label: bool = False
) -> dict[str, tuple[str, str, str]]:
    """Images in folders of their classes, with metadata; file -> (label, sex, site)."""
    images: dict[str, tuple[str, str, str]] = {}
    number = 0
    for split, size in IMAGES.items():
        for _ in range(size):
            values = (CLASSES[number % 2], SEXES[number // 2 % 2], SITES[number % 3])
            file = f"{f'{split}/' if splits else ''}{values[0]}/{number:02}.png"
            save_image(root / file, number)
            images[file] = values
            number += 1
    for folder in [""] if above or not splits else [f"{split}/" for split in IMAGES]:
        own = {file: values for file, values in images.items() if file.startswith(folder)}
        columns = {
            "file_name": [file.removeprefix(folder) for file in own],
            "sex": [values[1] for values in own.values()],
            "site": [values[2] for values in own.values()],
        }
        if label:
            columns["label"] = [f"not a {CLASSES[values[0] == 'cat']}" for values in own.values()]
        write(root / f"{folder}metadata{suffix}", columns)
    return images


def check(catalogue: Catalogue, images: dict[str, tuple[str, str, str]]) -> None:
    names = catalogue.target_names, catalogue.protected_names
    found = {
        file: (names[0][y], names[1][a])
        for file, y, a in zip(catalogue.files, catalogue.target, catalogue.protected, strict=True)
    }
    assert found == {file: values[:2] for file, values in images.items()}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("above", [False, True], ids=["in the splits", "above"])
def test_folders_of_splits(tmp_path: Path, above: bool, suffix: str, log: Warnings) -> None:
    images = data_set(tmp_path, above=above, suffix=suffix)
    catalogue = imagefolder.read(tmp_path, settings(tmp_path))
    check(catalogue, images)
    assert catalogue.listing == ("" if above else "*/") + f"metadata{suffix}"
    assert (catalogue.rows, catalogue.rejected) == (32, ())
    splits = load_splits(settings(tmp_path, audit=["site"]), log=log)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == list(IMAGES.values())
    assert all(name.startswith("validation/") for name in splits.validation.ids)
    assert splits.attribute_names == {"site": SITES}
    assert log.messages == []


def ids(splits: Splits) -> list[set[str]]:
    return [set(part.ids) for part in (splits.train, splits.validation, splits.test)]


def test_without_folders_of_splits_chance_cuts_each_group(tmp_path: Path) -> None:
    images = data_set(tmp_path, splits=False)
    splits = load_splits(settings(tmp_path, validation_share=0.25, test_share=0.25))
    assert splits.train.group_counts(2, 2).tolist() == [[4, 4], [4, 4]]
    assert splits.test.group_counts(2, 2).tolist() == [[2, 2], [2, 2]]
    assert set().union(*ids(splits)) == set(images)
    assert sum(map(len, ids(splits))) == len(images)
    changes = {"validation_share": 0.25, "test_share": 0.25, "train_images": 6, "minority_ratio": 0.5}
    biased = load_splits(settings(tmp_path, **changes))
    assert biased.train.group_counts(2, 2).tolist() == [[1, 2], [2, 1]]
    assert ids(biased)[1:] == ids(splits)[1:]
    assert ids(biased)[0] < ids(splits)[0]
    assert ids(load_splits(settings(tmp_path, **changes, seed=1))) != ids(biased)


def test_folders_of_splits_by_other_names(tmp_path: Path) -> None:
    data_set(tmp_path)
    for split, name in (("train", "Training"), ("validation", "valid"), ("test", "Test")):
        (tmp_path / split).rename(tmp_path / name)
        (tmp_path / name / "metadata.csv").rename(tmp_path / name / "Metadata.CSV")
    splits = load_splits(settings(tmp_path))
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == list(IMAGES.values())


def test_a_column_of_that_name_goes_before_the_folder(tmp_path: Path) -> None:
    images = data_set(tmp_path, label=True)
    catalogue = imagefolder.read(tmp_path, settings(tmp_path))
    assert catalogue.target_names == ("not a cat", "not a dog")
    check(catalogue, {file: (f"not a {CLASSES[label == 'cat']}", sex, "") for file, (label, sex, _) in images.items()})


def test_the_folder_may_be_the_protected_attribute(tmp_path: Path) -> None:
    images = data_set(tmp_path)
    swapped = {file: (sex, label, site) for file, (label, sex, site) in images.items()}
    check(imagefolder.read(tmp_path, settings(tmp_path, target="sex", protected="label")), swapped)
    crossed = imagefolder.read(
        tmp_path, settings(tmp_path, target="sex", protected="site", intersect_with=["label"], majority=[0, 5])
    )
    assert crossed.protected_names == ("A, cat", "A, dog", "B, cat", "B, dog", "C, cat", "C, dog")
    check(crossed, {file: (sex, f"{site}, {label}", "") for file, (label, sex, site) in images.items()})


def test_images_that_the_metadata_lack_are_rejected(tmp_path: Path, log: Warnings) -> None:
    data_set(tmp_path)
    save_image(tmp_path / "train/cat/new.JPG", 99)
    (tmp_path / "train/cat/notes.txt").touch()
    with pytest.raises(AimfairError, match=r"1 of 33 rows of .* 'train/cat/new.JPG': not in metadata.csv"):
        load_splits(settings(tmp_path))
    load_splits(settings(tmp_path, max_bad_share=0.05), log=log)
    assert len(log.messages) == 1


def test_deep_folders_do_without_labels_from_them(tmp_path: Path) -> None:
    for number in range(4):
        save_image(tmp_path / f"train/a/b/{number}.png", number)
    write(
        tmp_path / "train/metadata.csv",
        {"file_name": [f"a/b/{number}.png" for number in range(4)], "sick": [0, 1, 0, 1], "sex": ["f", "f", "m", "m"]},
    )
    assert len(imagefolder.read(tmp_path, settings(tmp_path, target="sick")).files) == 4
    with pytest.raises(
        AimfairError, match=r"metadata.csv:2' and 3 more: found 'a/b/0.png', expected one folder, the 'label', betw"
    ):
        imagefolder.read(tmp_path, settings(tmp_path))


def replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        path = root / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return apply


@pytest.mark.parametrize(
    ("options", "spoil", "changes", "message"),
    [
        (
            {},
            lambda root: [table.unlink() for table in root.glob("*/metadata.csv")],
            {},
            r"found no metadata.csv, metadata.jsonl or metadata.parquet, expected one with a column file_name and one"
            r" for each of 'label', 'sex': folders can give 'label' only",
        ),
        (
            {},
            lambda root: (root / "test/metadata.csv").unlink(),
            {},
            r"test: found no metadata, expected them as in .*tr",
        ),
        (
            {},
            lambda root: (root / "metadata.csv").touch(),
            {},
            r"found .*metadata.csv and .*/metadata.csv, expected them",
        ),
        ({}, lambda root: (root / "train/metadata.jsonl").touch(), {}, r"train: found metadata.csv and metadata.jsonl"),
        ({}, lambda root: (root / "val").mkdir(), {}, r"found splits 'val' and 'validation', expected one 'val'"),
        ({}, lambda root: None, {"protected": "six"}, r"data.protected: found 'six', .*; did you mean 'sex'\?"),
        ({}, lambda root: None, {"protected": "colour"}, r"expected one of label, sex, site"),
        (
            {},
            replace("train/metadata.csv", "file_name", "file"),
            {},
            r"found no column 'file_name' in 'file, sex, site'",
        ),
        (
            {},
            replace("train/metadata.csv", "site", "label"),
            {},
            r"found a column 'label' in the metadata of some splits",
        ),
        (
            {},
            replace("train/metadata.csv", "cat/00", "../00"),
            {},
            r"2 of 33 rows of .*'train/metadata.csv:2': found file '../00.png', expected a",
        ),
        (
            {},
            replace("train/metadata.csv", "cat/00", "/cat/00"),
            {},
            r"'train/metadata.csv:2': found file '/cat/00.png', exp",
        ),
        (
            {"above": True},
            replace("metadata.csv", "train/cat/00", "cat/00"),
            {},
            r"expected a path in test, train, val",
        ),
        (
            {"splits": False},
            replace("metadata.csv", "site", "split"),
            {},
            r"column 'split', .* data.table metadata.csv,",
        ),
        (
            {},
            replace("train/metadata.csv", ",f,", ",,"),
            {},
            r"8 of 32 rows of .*'train/metadata.csv:2' and 7 more: 'sex' is ''",
        ),
    ],
)
def test_bad_folders_are_refused(
    tmp_path: Path,
    options: dict[str, bool],
    spoil: Callable[[Path], None],
    changes: dict[str, object],
    message: str,
) -> None:
    data_set(tmp_path, **options)  # type: ignore[arg-type]
    spoil(tmp_path)
    with pytest.raises(AimfairError, match=message):
        load_splits(settings(tmp_path, **changes))


def test_one_class_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "metadata.csv", {"file_name": ["cat/1.png", "cat/2.png"], "sex": ["f", "m"]})
    with pytest.raises(ConfigError, match=r"data.target: 'label' has 1 value, cat, expected two or more"):
        imagefolder.read(tmp_path, settings(tmp_path))


@pytest.mark.parametrize("splits", [True, False])
def test_clusters(tmp_path: Path, splits: bool) -> None:
    data_set(tmp_path, splits=splits)
    for path in tmp_path.rglob("metadata.csv"):
        lines = path.read_text().splitlines()
        name = path.parent.name if splits else ""
        rows = [f"{line},{name} {number // 4}" for number, line in enumerate(lines[1:])]
        path.write_text("\n".join([lines[0] + ",person", *rows]))
    found = load_splits(settings(tmp_path, group_column="person"))
    persons = [set(part.clusters) for part in (found.train, found.validation, found.test)]
    assert sum(map(len, persons)) == len(set().union(*persons)) > 3
