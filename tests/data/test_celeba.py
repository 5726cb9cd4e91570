from pathlib import Path

import numpy as np
import pytest

from aimfair.config import DataSettings
from aimfair.data import celeba
from aimfair.data.catalogue import Catalogue
from aimfair.data.load import load_splits
from aimfair.errors import AimfairError, ConfigError
from tests.data.conftest import Warnings, save_image

HEADER = "Male Smiling Young "


def settings(root: Path, **changes: object) -> DataSettings:
    return DataSettings.model_validate(
        {"kind": "celeba", "root": root, "target": "Smiling", "protected": "Male", "image_size": 8, **changes}
    )


def write(root: Path, attributes: list[str], partition: list[str]) -> None:
    (root / celeba.ATTRIBUTES).write_text("\n".join([str(len(attributes)), HEADER, *attributes]) + "\n")
    (root / celeba.PARTITION).write_text("\n".join(partition) + "\n")


def rows() -> tuple[list[str], list[str]]:
    return (
        ["000001.jpg -1  1  1", "000002.jpg  1 -1  1", "000003.jpg  1  1 -1", "000004.jpg -1 -1 -1"],
        ["000001.jpg 0", "000002.jpg 0", "000003.jpg 1", "000004.jpg 2"],
    )


def read(root: Path) -> Catalogue:
    return celeba.read(root, settings(root))


def test_the_tables(tmp_path: Path) -> None:
    write(tmp_path, *rows())
    catalogue = read(tmp_path)
    assert catalogue.files == tuple(f"img_align_celeba/00000{number}.jpg" for number in (1, 2, 3, 4))
    assert catalogue.split is not None
    assert catalogue.split.tolist() == [0, 0, 1, 2]
    assert catalogue.target.tolist() == [1, 0, 1, 0]
    assert catalogue.protected.tolist() == [0, 1, 1, 0]
    assert catalogue.target_names == ("not Smiling", "Smiling")
    assert catalogue.protected_names == ("not Male", "Male")
    assert (catalogue.rows, catalogue.rejected) == (4, ())


def test_bad_rows_are_rejected_one_by_one(tmp_path: Path) -> None:
    attributes, partition = rows()
    attributes += ["000005.jpg 1 1", "000006.jpg 0 1 1", "../7.jpg 1 1 1", "000001.jpg 1 1 1", "000008.jpg 1 1 1"]
    partition += ["000009.jpg 1", "000004.jpg 0", "000010.jpg 3"]
    write(tmp_path, attributes, partition)
    catalogue = read(tmp_path)
    assert len(catalogue.files) == 4
    assert [name for name, _ in catalogue.rejected] == [
        *(f"list_attr_celeba.txt:{line}" for line in (7, 8, 9, 10)),
        *(f"list_eval_partition.txt:{line}" for line in (6, 7)),
        "000008.jpg",
        "000009.jpg",
    ]
    assert catalogue.rows == 12
    with pytest.raises(AimfairError, match=r"8 of 12 rows of .* cannot be used, a larger share than the 0.01"):
        load_splits(settings(tmp_path), 0)


def test_bad_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AimfairError, match=r"list_attr_celeba.txt: cannot be read: .*No such file"):
        read(tmp_path)
    write(tmp_path, *rows())
    (tmp_path / celeba.PARTITION).unlink()
    with pytest.raises(AimfairError, match=r"list_eval_partition.txt: cannot be read"):
        read(tmp_path)
    (tmp_path / celeba.ATTRIBUTES).write_text("<html>404</html>\n")
    with pytest.raises(AimfairError, match=r"list_attr_celeba.txt:1: found '<html>404</html>', expected the number"):
        read(tmp_path)


def test_unknown_attributes_are_refused_with_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, *rows())
    with pytest.raises(ConfigError, match=r"data.protected: found 'male', .*; did you mean 'Male'\?"):
        load_splits(settings(tmp_path, protected="male"), 0)


def data_set(root: Path) -> None:
    """24 training, 8 validation and 8 test images; Male in every second, Smiling in the second half of each split."""
    attributes, partition = [], []
    number = 0
    for split, size in enumerate((24, 8, 8)):
        for place in range(size):
            number += 1
            name = f"{number:06}.jpg"
            save_image(root / celeba.IMAGES / name, number, (9, 11))
            attributes.append(f"{name} {1 if place % 2 else -1} {1 if place >= size // 2 else -1} 1")
            partition.append(f"{name} {split}")
    write(root, attributes, partition)


def test_training_is_biased_first_by_number_and_the_rest_official(tmp_path: Path, log: Warnings) -> None:
    data_set(tmp_path)
    splits = load_splits(settings(tmp_path, bias=0.25, train_images=10), 0, log=log)
    numbers = [int(name[-10:-4]) for name in splits.train.ids]
    # Groups (y, a) = (0, 0) and (1, 1) have one image, (0, 1) and (1, 0) four, each the first that there are.
    assert numbers == [1, 2, 4, 6, 8, 13, 14, 15, 17, 19]
    assert splits.train.group_counts(2, 2).tolist() == [[1, 4], [4, 1]]
    assert [int(name[-10:-4]) for name in (*splits.validation.ids, *splits.test.ids)] == list(range(25, 41))
    assert splits.test.group_counts(2, 2).tolist() == [[2, 2], [2, 2]]
    assert splits.test.images.shape == (8, 8, 8, 3)
    assert log.messages == []
    again = load_splits(settings(tmp_path, bias=0.25, train_images=10), 7)
    assert again.train.ids == splits.train.ids
    np.testing.assert_array_equal(again.train.images, splits.train.images)


def test_as_many_training_images_as_the_bias_allows(tmp_path: Path) -> None:
    data_set(tmp_path)
    assert load_splits(settings(tmp_path, bias=0.5), 0).train.group_counts(2, 2).tolist() == [[3, 6], [6, 3]]
    with pytest.raises(AimfairError, match=r"\(y=0, a=1\) has 6 images.*18 images are possible"):
        load_splits(settings(tmp_path, bias=0.5, train_images=20), 0)
