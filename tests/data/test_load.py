"""What holds for every kind of data set on disk, seen on tables."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aimfair.base.errors import AimfairError, ConfigError
from aimfair.base.log import Log
from aimfair.data import decode as decode_module
from aimfair.data.decode import decode
from aimfair.data.images import Rows, Splits
from aimfair.data.load import list_images, load_splits
from aimfair.data.settings import DataSettings
from aimfair.generation.source import read_source
from tests.data.conftest import Warnings, save_image

SIZES = {"train": 40, "val": 12, "test": 12}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images named by their numbers; groups in turn."""
    lines = ["file,split,shape,colour"]
    number = 0
    for split, size in SIZES.items():
        for _ in range(size):
            save_image(tmp_path / "images" / f"{number:03}.png", number)
            shape, colour = divmod(number % 4, 2)
            lines.append(f"images/{number:03}.png,{split},{('ball', 'cube')[shape]},{('blue', 'red')[colour]}")
            number += 1
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    return tmp_path


def settings(root: Path | None, **changes: object) -> DataSettings:
    return DataSettings.model_validate(
        {"kind": "table", "root": root, "target": "shape", "protected": "colour", "image_size": 8, **changes}
    )


def numbers(splits: Splits) -> list[list[int]]:
    return [[int(name[-7:-4]) for name in part.ids] for part in (splits.train, splits.validation, splits.test)]


def test_a_table_as_it_is(root: Path, log: Warnings) -> None:
    splits = load_splits(settings(root), log=log)
    assert numbers(splits) == [list(range(40)), list(range(40, 52)), list(range(52, 64))]
    assert (splits.target_names, splits.protected_names) == (("ball", "cube"), ("blue", "red"))
    assert splits.test.target.tolist() == [0, 0, 1, 1] * 3
    assert splits.test.protected.tolist() == [0, 1] * 6
    np.testing.assert_array_equal(splits.test.images[3], decode(root / "images/055.png", 8, 1000))
    assert log.messages == []


def test_a_biased_training_set_is_drawn_by_the_seed(root: Path) -> None:
    first, again, other = (
        load_splits(settings(root, minority_ratio=0.25, train_images=20, seed=seed)) for seed in (1, 1, 2)
    )
    assert first.train.group_counts(2, 2).tolist() == [[2, 8], [8, 2]]
    assert numbers(first) == numbers(again)
    assert numbers(first)[0] != numbers(other)[0]
    assert numbers(first)[1:] == numbers(other)[1:]


def test_images_are_stretched_where_that_is_asked_for(root: Path) -> None:
    found = load_splits(settings(root, fit="stretch")).test.images[3]
    np.testing.assert_array_equal(found, decode(root / "images/055.png", 8, 1000, "stretch"))
    assert (found != decode(root / "images/055.png", 8, 1000)).any()


def test_no_split_is_copied_into_memory(root: Path) -> None:
    """Neither with given splits nor with random ones: a set may be larger than the memory."""
    splits = load_splits(settings(root, train_images=20))
    for part in (splits.train, splits.validation, splits.test):
        assert isinstance(part.images, np.ndarray)
        assert isinstance(part.images.base, np.memmap)
    by_chance = load_splits(settings(root, split_column=None))
    parts = (by_chance.train, by_chance.validation, by_chance.test)
    assert len({id(part.images.stored) for part in parts if isinstance(part.images, Rows)}) == 1
    for part in parts:
        assert isinstance(part.images, Rows)
        assert not part.images.stored.flags.owndata
        expected = np.stack([decode(root / name, 8, 1000) for name in part.ids])
        np.testing.assert_array_equal(part.images, expected)
        for key in (3, slice(2, 5), np.array([4, 0, 4])):
            np.testing.assert_array_equal(part.images[key], expected[key])
        np.testing.assert_array_equal(part.subset([5, 1]).images, expected[[5, 1]])


def test_other_training_images_leave_those_of_validation_and_test_decoded(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_splits(settings(root, train_images=20))
    names: list[str] = []
    original = decode_module.read_rgb

    def read_rgb(path: Path, max_pixels: int) -> Image.Image:
        names.append(path.name)
        return original(path, max_pixels)

    monkeypatch.setattr(decode_module, "read_rgb", read_rgb)
    load_splits(settings(root, train_images=22, minority_ratio=0.2))
    assert names
    assert all(int(name[:3]) < SIZES["train"] for name in names)


def test_without_validation_images_some_of_training_are_taken(root: Path) -> None:
    path = root / "labels.csv"
    path.write_text(path.read_text().replace(",val,", ",train,"))
    told: list[str] = []
    splits = load_splits(settings(root, validation_share=0.25), log=Log(None, show=told.append))
    assert splits.validation.group_counts(2, 2).tolist() == [[3, 3], [3, 3]]
    assert splits.train.group_counts(2, 2).tolist() == [[10, 10], [10, 10]]
    train, validation, test = numbers(splits)
    assert sorted(train + validation) == list(range(52))
    assert test == list(range(52, 64))
    assert len(told) == 1
    assert "found no validation images; 12 of the 52 training images are used instead" in told[0]
    np.testing.assert_array_equal(
        splits.validation.images, np.stack([decode(root / name, 8, 1000) for name in splits.validation.ids])
    )
    assert numbers(load_splits(settings(root, validation_share=0.25))) == [train, validation, test]
    assert numbers(load_splits(settings(root, validation_share=0.25, seed=1)))[1] != validation


def test_bad_images_are_left_out_up_to_a_share(root: Path, log: Warnings) -> None:
    (root / "images/000.png").write_bytes(b"")
    os.truncate(root / "images/041.png", 50)
    with pytest.raises(AimfairError, match=r"2 of 64 images of .* 'images/000.png': empty file; 'images/041.png': can"):
        load_splits(settings(root))
    splits = load_splits(settings(root, max_bad_share=0.05), log=log)
    assert numbers(splits) == [list(range(1, 40)), [40, *range(42, 52)], list(range(52, 64))]
    assert splits.train.target.tolist() == [0, 1, 1, *[0, 0, 1, 1] * 9]
    np.testing.assert_array_equal(splits.validation.images[1], decode(root / "images/042.png", 8, 1000))
    assert len(log.messages) == 1
    assert log.messages[0].startswith("2 of 64 images of")


def test_bad_images_are_grouped_by_reason(root: Path) -> None:
    for number in (0, 5, 41):
        (root / f"images/{number:03}.png").unlink()
    (root / "images/002.png").write_bytes(b"")
    with pytest.raises(
        AimfairError,
        match=r"4 of 64 images .*: 'images/000.png' and 2 more: no such file; 'images/002.png': empty",
    ):
        load_splits(settings(root))


def test_later_refusals_name_what_is_left_out(root: Path, log: Warnings) -> None:
    """Too few images of a group, an empty split, a class that only left-out rows have: the cause is told."""
    path = root / "labels.csv"
    whole = path.read_text()
    rows = r"; 10 of 64 rows are left out: 'labels.csv:2' and 9 more: 'colour' is 'NA', which counts as missing"
    path.write_text(whole.replace("train,ball,blue", "train,ball,NA"))
    with pytest.raises(AimfairError, match=rf"'ball' by 'blue', has 0 images and needs 1; .*{rows}"):
        load_splits(settings(root, train_images=20, max_bad_share=0.5), log=log)
    path.write_text(whole.replace("train,cube,red", "train,NA,red").replace("train,cube,blue", "train,NA,blue"))
    with pytest.raises(
        AimfairError,
        match=r"no image of class 'cube', which other splits have; 20 of 64 rows are left out: .*'shape' is",
    ):
        load_splits(settings(root, max_bad_share=0.5), log=log)
    with pytest.raises(AimfairError, match=r"found 3 values, expected one for each of 2 .*; 20 of 64 rows are left"):
        load_splits(settings(root, max_bad_share=0.5, majority=[0, 1, 0]), log=log)
    with pytest.raises(AimfairError, match=r"20 of 64 rows of .* data.max_bad_share: 'labels.csv:4' and 19 more: 'sh"):
        load_splits(settings(root, majority=[0, 1, 0]))
    path.write_text(whole)
    for number in range(52, 64):
        (root / f"images/{number:03}.png").unlink()
    with pytest.raises(
        AimfairError,
        match=r"split 'test' has no images; .*; 12 of 64 images are left out: 'images/052.png' and 11 m",
    ):
        load_splits(settings(root, max_bad_share=0.5), log=log)


def copy_pixels(root: Path, source: int, target: int) -> None:
    """The same image in another file: other bytes, the same pixels."""
    with Image.open(root / f"images/{source:03}.png") as image:
        image.save(root / f"images/{target:03}.png", compress_level=1)


@pytest.mark.parametrize("other", [0, 40], ids=["train", "validation"])
def test_a_test_image_in_another_split_is_refused(root: Path, other: int) -> None:
    copy_pixels(root, other, 60)
    expected = rf"labels.csv: 1 images of the test set .* 'images/{other:03}.png' and 'images/060.png'; remove"
    with pytest.raises(AimfairError, match=expected):
        load_splits(settings(root))


def test_other_copies_are_reported(root: Path, log: Warnings) -> None:
    copy_pixels(root, 0, 40)
    copy_pixels(root, 1, 5)
    copy_pixels(root, 3, 4)
    load_splits(settings(root), log=log)
    assert [message.partition(": ")[2] for message in log.messages] == [
        "1 images are in training and in validation, for example 'images/000.png' and 'images/040.png'",
        "1 images are present more than once, with different labels, for example 'images/003.png' and 'images/004.png'",
    ]


def with_patients(root: Path, patients: dict[int, str]) -> None:
    """A column of them; images that are not among them have one each."""
    path = root / "labels.csv"
    header, *lines = path.read_text().splitlines()
    rows = [f"{line},{patients.get(number, f'p{number}')}" for number, line in enumerate(lines)]
    path.write_text("\n".join([f"{header},patient", *rows]))


def test_clusters_stay_in_one_split_and_are_known(root: Path) -> None:
    with_patients(root, {number: f"p{number // 8 * 8 + number % 4}" for number in range(64)})  # two images of each
    splits = load_splits(settings(root, split_column=None, group_column="patient"))
    persons = [part.clusters for part in (splits.train, splits.validation, splits.test)]
    assert sum(len(set(of_part)) for of_part in persons) == 32
    for part in (splits.train, splits.validation, splits.test):
        expected = [f"p{number // 8 * 8 + number % 4}" for number in (int(name[-7:-4]) for name in part.ids)]
        assert list(part.clusters) == expected
        assert part.subset([3, 1]).clusters == (expected[3], expected[1])
    alone = load_splits(settings(root, split_column=None))
    assert alone.test.clusters == alone.test.ids


def test_clusters_in_several_splits(root: Path, log: Warnings) -> None:
    with_patients(root, {3: "p", 44: "p"})
    load_splits(settings(root, group_column="patient"), log=log)
    assert [message.partition(": ")[2] for message in log.messages] == [
        "1 values of data.group_column are in training and in validation, for example 'images/003.png' and"
        " 'images/044.png'"
    ]
    path = root / "labels.csv"
    path.write_text(path.read_text().replace("p63", "p5"))
    with pytest.raises(
        AimfairError,
        match=r"1 values of data.group_column of the test set are also in another split, .* 'images/005.png' and"
        r" 'images/063.png'; put each in one split",
    ):
        load_splits(settings(root, group_column="patient"))


def test_an_image_of_an_unknown_original_is_left_out(root: Path, log: Warnings) -> None:
    with_patients(root, {3: ""})
    splits = load_splits(settings(root, group_column="patient", max_bad_share=0.05), log=log)
    assert len(splits.train) == 39
    assert "'labels.csv:5': 'patient' is '', expected a value in every row" in log.messages[0]


def test_nothing_of_the_user_is_changed(root: Path) -> None:
    def state() -> dict[str, tuple[int, bytes]]:
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in root.rglob("*") if path.is_file()}

    before = state()
    load_splits(settings(root))
    assert state() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"root": "/nowhere/at/all"},
            r"data.root: found /nowhere/at/all, which is not a folder, expected that of table",
        ),
        ({"group_column": "patients"}, r"data.group_column: found 'patients', which the header of .* expected one of"),
        ({"majority": [0, 2]}, r"data.majority: found 2 for target class 1, expected a protected value from 0 to 1"),
        ({"majority": [0, 1, 0]}, r"data.majority: found 3 values, expected one for each of 2 target classes"),
    ],
)
def test_bad_settings_are_refused(root: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_splits(settings(**{"root": root, **changes}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("table", "labels.csv"),
        ("table", "labels.jsonl"),
        ("table", "labels.parquet"),
        ("imagefolder", "metadata.csv"),
        ("celeba", "list_attr_celeba.txt"),
        ("celeba", "list_eval_partition.csv"),
    ],
)
def test_lists_that_may_not_be_read_are_named_with_their_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, file: str
) -> None:
    for name in ("list_attr_celeba.txt", "list_eval_partition.csv"):
        (tmp_path / name).write_text("1\nSmiling Male\na.jpg 1 1\n")
    (tmp_path / file).write_text("x")
    open_file = Path.open

    def refuse(path: Path, *arguments: object, **options: object) -> object:
        if path.name == file:
            raise PermissionError(13, "Permission denied", str(path))
        return open_file(path, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    table = file if kind == "table" else "labels.csv"
    settings = DataSettings(kind=kind, root=tmp_path, table=table, target="Smiling", protected="Male")  # type: ignore[arg-type]
    with pytest.raises(
        AimfairError,
        match=f"^{tmp_path / file}: permission denied to user .*; change .* choose another with data.root$",
    ):
        list_images(settings)


def test_folders_that_may_not_be_listed_are_named_with_their_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, onerror: Any) -> Iterator[Any]:
        onerror(PermissionError(13, "Permission denied", str(folder / "inner")))
        yield from ()

    monkeypatch.setattr("os.walk", refuse)
    with pytest.raises(AimfairError, match=r"inner: permission denied to user .* choose another with data.root$"):
        list_images(DataSettings(kind="utkface", root=tmp_path, target="gender", protected="white", majority=[1, 0]))
    (tmp_path / "0_0").mkdir()
    with pytest.raises(AimfairError, match=r"inner: permission denied to .* choose another with generate.folder$"):
        read_source(tmp_path, (2, 2), DataSettings())


def test_a_split_or_class_without_images_is_refused(root: Path) -> None:
    path = root / "labels.csv"
    whole = path.read_text()
    path.write_text(whole.replace(",test,", ",train,"))
    with pytest.raises(AimfairError, match=r"split 'test' has no images; name .* with data.split_column null$"):
        load_splits(settings(root))
    path.write_text("\n".join(whole.splitlines()[:9]))
    with pytest.raises(AimfairError, match=r"split 'val' has no images; each group is cut by data.validation_share"):
        load_splits(settings(root, split_column=None))
    path.write_text(whole.replace("images/063.png,test,cube", "images/063.png,test,cone"))
    with pytest.raises(AimfairError, match=r"split 'train' has no image of class 'cone'"):
        load_splits(settings(root, majority=[0, 1, 0]))
    path.write_text(whole.replace("ball", "cube"))
    with pytest.raises(ConfigError, match=r"data.target: 'shape' has 1 value, cube, expected two or more"):
        load_splits(settings(root))
