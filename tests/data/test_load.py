"""What holds for every kind of data set on disk, seen on tables."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aimfair.config import DataSettings
from aimfair.data.decode import decode
from aimfair.data.images import Splits
from aimfair.data.load import load_splits
from aimfair.errors import AimfairError, ConfigError
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
    first, again, other = (load_splits(settings(root, bias=0.25, train_images=20, seed=seed)) for seed in (1, 1, 2))
    assert first.train.group_counts(2, 2).tolist() == [[2, 8], [8, 2]]
    assert numbers(first) == numbers(again)
    assert numbers(first)[0] != numbers(other)[0]
    assert numbers(first)[1:] == numbers(other)[1:]


def test_images_are_stretched_where_that_is_asked_for(root: Path) -> None:
    found = load_splits(settings(root, fit="stretch")).test.images[3]
    np.testing.assert_array_equal(found, decode(root / "images/055.png", 8, 1000, "stretch"))
    assert (found != decode(root / "images/055.png", 8, 1000)).any()


def test_splits_are_read_from_the_map_without_a_copy(root: Path) -> None:
    splits = load_splits(settings(root, train_images=20))
    parts = (splits.train, splits.validation, splits.test)
    assert len({id(part.images.base) for part in parts}) == 1
    assert not any(part.images.flags.owndata for part in parts)


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


def copy_pixels(root: Path, source: int, target: int) -> None:
    """The same picture in another file: other bytes, the same pixels."""
    with Image.open(root / f"images/{source:03}.png") as image:
        image.save(root / f"images/{target:03}.png", compress_level=1)


@pytest.mark.parametrize("other", [0, 40], ids=["train", "validation"])
def test_a_test_image_in_another_split_is_refused(root: Path, other: int) -> None:
    copy_pixels(root, other, 60)
    expected = rf"labels.csv: 1 pictures of the test set .* 'images/{other:03}.png' and 'images/060.png'; take"
    with pytest.raises(AimfairError, match=expected):
        load_splits(settings(root))


def test_other_copies_are_reported(root: Path, log: Warnings) -> None:
    copy_pixels(root, 0, 40)
    copy_pixels(root, 1, 5)
    copy_pixels(root, 3, 4)
    load_splits(settings(root), log=log)
    assert [message.partition(": ")[2] for message in log.messages] == [
        "1 pictures are in training and in validation, for example 'images/000.png' and 'images/040.png'",
        "1 pictures are there more than once, with different labels, for example 'images/003.png' and 'images/004.png'",
    ]


def test_nothing_of_the_user_is_changed(root: Path) -> None:
    def state() -> dict[str, tuple[int, bytes]]:
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in root.rglob("*") if path.is_file()}

    before = state()
    load_splits(settings(root))
    assert state() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": "/nowhere/at/all"}, r"data.root: found /nowhere/at/all, which is no folder, expected that of table"),
        ({"majority": [0, 2]}, r"data.majority: found 2 for target class 1, expected a protected value from 0 to 1"),
        ({"majority": [0, 1, 0]}, r"data.majority: found 3 values, expected one for each of 2 target classes"),
    ],
)
def test_bad_settings_are_refused(root: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_splits(settings(**{"root": root, **changes}))  # type: ignore[arg-type]


def test_a_split_or_class_without_images_is_refused(root: Path) -> None:
    path = root / "labels.csv"
    whole = path.read_text()
    path.write_text(whole.replace(",val,", ",train,"))
    with pytest.raises(AimfairError, match=r"split 'val' has no images"):
        load_splits(settings(root))
    path.write_text(whole.replace("images/063.png,test,cube", "images/063.png,test,cone"))
    with pytest.raises(AimfairError, match=r"split 'train' has no image of class 'cone'"):
        load_splits(settings(root, majority=[0, 1, 0]))
    path.write_text(whole.replace("ball", "cube"))
    with pytest.raises(ConfigError, match=r"data.target: 'shape' has 1 values, cube, expected two or more"):
        load_splits(settings(root))
