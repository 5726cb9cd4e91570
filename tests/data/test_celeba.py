from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from aimfair.base.errors import AimfairError, ConfigError
from aimfair.data import celeba
from aimfair.data.biased_subset import biased_indices
from aimfair.data.catalogue import Catalogue
from aimfair.data.labels import Attribute, Labels
from aimfair.data.load import load_splits
from aimfair.data.settings import DataSettings
from tests.data.conftest import Warnings, save_image

NAMES = ["Male", "Smiling", "Young"]


def settings(root: Path, **changes: object) -> DataSettings:
    return DataSettings.model_validate(
        {"kind": "celeba", "root": root, "target": "Smiling", "protected": "Male", "image_size": 8, **changes}
    )


@dataclass
class Form:
    """A way in which CelebA is handed out."""

    suffix: str
    images: str

    def write(self, root: Path, attributes: list[str], partition: list[str]) -> None:
        """Lists of rows that are written with blanks here."""
        (root / self.images).mkdir(parents=True, exist_ok=True)
        if self.suffix == ".txt":
            attributes = [str(len(attributes)), " ".join(NAMES) + " ", *attributes]
        else:
            attributes = [",".join(["image_id", *NAMES]), *(",".join(row.split()) for row in attributes)]
            partition = ["image_id,partition", *(",".join(row.split()) for row in partition)]
        (root / f"list_attr_celeba{self.suffix}").write_text("\n".join(attributes) + "\n")
        (root / f"list_eval_partition{self.suffix}").write_text("\n".join(partition) + "\n")

    def write_data_set(self, root: Path) -> None:
        """24 training, 8 validation and 8 test images; Male in every second, Smiling in the second half of each split,
        Young in every image whose number has a remainder of 2 or 3 by 4."""
        attributes, partition = [], []
        number = 0
        for split, size in enumerate((24, 8, 8)):
            for place in range(size):
                number += 1
                name = f"{number:06}.jpg"
                save_image(root / self.images / name, number, (9, 11))
                values = (place % 2, place >= size // 2, place % 4 >= 2)
                attributes.append(" ".join([name, *("1" if value else "-1" for value in values)]))
                partition.append(f"{name} {split}")
        self.write(root, attributes, partition)


TORCHVISION = Form(".txt", "img_align_celeba")
MIRROR = Form(".csv", "img_align_celeba/img_align_celeba")
FORMS = pytest.mark.parametrize("form", [TORCHVISION, Form(".csv", "img_align_celeba"), MIRROR], ids=str)


def rows() -> tuple[list[str], list[str]]:
    return (
        ["000001.jpg -1  1  1", "000002.jpg  1 -1  1", "000003.jpg  1  1 -1", "000004.jpg -1 -1 -1"],
        ["000001.jpg 0", "000002.jpg 0", "000003.jpg 1", "000004.jpg 2"],
    )


def read(root: Path, **changes: object) -> Catalogue:
    return celeba.read(root, settings(root, **changes))


def test_suffixes_in_another_case(tmp_path: Path) -> None:
    TORCHVISION.write_data_set(tmp_path)
    for path in (tmp_path / "img_align_celeba").iterdir():
        path.rename(path.with_suffix(".JPG"))
    catalogue = read(tmp_path)
    assert catalogue.files[0] == "img_align_celeba/000001.JPG"
    assert "40 files are named in another way on disk" in catalogue.notes[0]


def test_a_file_of_another_suffix_costs_its_row_alone(tmp_path: Path) -> None:
    TORCHVISION.write_data_set(tmp_path)
    path = tmp_path / "img_align_celeba" / "000003.jpg"
    path.rename(path.with_suffix(".png"))
    catalogue = read(tmp_path)
    (left_out,) = catalogue.rejected
    assert left_out.name == "000003.jpg"
    assert "000003.png" in left_out.reason
    assert len(catalogue.files) == 39


@FORMS
def test_the_lists(tmp_path: Path, form: Form) -> None:
    form.write(tmp_path, *rows())
    catalogue = read(tmp_path)
    assert catalogue.files == tuple(f"{form.images}/00000{number}.jpg" for number in (1, 2, 3, 4))
    assert catalogue.split is not None
    assert catalogue.split.tolist() == [0, 0, 1, 2]
    assert catalogue.target.tolist() == [1, 0, 1, 0]
    assert catalogue.protected.tolist() == [0, 1, 1, 0]
    assert catalogue.target_names == ("not Smiling", "Smiling")
    assert catalogue.protected_names == ("not Male", "Male")
    assert (catalogue.rows, catalogue.rejected) == (4, ())


def test_an_intersection(tmp_path: Path) -> None:
    TORCHVISION.write(tmp_path, *rows())
    catalogue = read(tmp_path, intersect_with=["Young"])
    assert catalogue.protected_names == ("not Male, not Young", "not Male, Young", "Male, not Young", "Male, Young")
    assert catalogue.protected.tolist() == [1, 3, 2, 0]
    assert list(catalogue.labels.attributes) == ["Male", "Young"]
    assert catalogue.labels.attributes["Young"].values.tolist() == [1, 1, 0, 0]
    assert settings(tmp_path, intersect_with=["Young", "Pale"], audit=["Bald"]).group_shape() == (2, 8)


@FORMS
def test_bad_rows_are_rejected_one_by_one(tmp_path: Path, form: Form) -> None:
    attributes, partition = rows()
    attributes += ["000005.jpg 1 1", "000006.jpg 0 1 1", "../7.jpg 1 1 1", "000001.jpg 1 1 1", "000008.jpg 1 1 1"]
    partition += ["000009.jpg 1", "000004.jpg 0", "000010.jpg 3"]
    form.write(tmp_path, attributes, partition)
    catalogue = read(tmp_path)
    assert len(catalogue.files) == 4
    after_header = 2 if form.suffix == ".txt" else 1
    assert [name for name, _ in catalogue.rejected] == [
        *(f"list_attr_celeba{form.suffix}:{after_header + row}" for row in (5, 6, 7, 8)),
        *(f"list_eval_partition{form.suffix}:{(form.suffix == '.csv') + row}" for row in (6, 7)),
        "000008.jpg",
        "000009.jpg",
    ]
    assert catalogue.rows == 12
    with pytest.raises(AimfairError, match=r"8 of 12 rows of .* cannot be used, a larger share than the 0.01"):
        load_splits(settings(tmp_path))


def change(name: str, text: str | None) -> Callable[[Path], None]:
    """Replaces a file of the folder, or removes it."""

    def apply(root: Path) -> None:
        if text is None:
            (root / name).unlink()
        else:
            (root / name).write_text(text)

    return apply


@pytest.mark.parametrize(
    ("form", "spoil", "message"),
    [
        (TORCHVISION, change("list_attr_celeba.txt", None), r"neither list_attr_celeba.txt nor list_attr_celeba.csv"),
        (MIRROR, change("list_eval_partition.csv", None), r"found neither list_eval_partition.txt nor"),
        (
            MIRROR,
            change("list_attr_celeba.txt", "1\n"),
            r"found list_attr_celeba.txt and list_attr_celeba.csv, expected",
        ),
        (
            TORCHVISION,
            change("list_attr_celeba.txt", "<html>404</html>\n"),
            r"list_attr_celeba.txt:1: found '<html>404</html>', expected the number",
        ),
        (
            MIRROR,
            change("list_attr_celeba.csv", "<html>404</html>\n"),
            r"list_attr_celeba.csv:1: found '<html>404</html>', expected a header that begins 'image_id'",
        ),
        (
            MIRROR,
            change("list_eval_partition.csv", ""),
            r"partition.csv:1: found '', expected a header .* 'image_id,part",
        ),
        (
            MIRROR,
            change("list_eval_partition.csv", "image_id,partition\nx.jpg,0\n"),
            r"no image that is also in list_eval",
        ),
        (
            TORCHVISION,
            lambda root: (root / TORCHVISION.images).rename(root / "elsewhere"),
            r"img_align_celeba: found no such folder, expected CelebA's images there",
        ),
        (
            MIRROR,
            change("img_align_celeba/000001.jpg", ""),
            r"img_align_celeba: found images in it and in .*, expected them in one",
        ),
    ],
)
def test_bad_lists_are_refused(
    tmp_path: Path, form: Form, spoil: Callable[[Path], None], message: str, log: Warnings
) -> None:
    form.write(tmp_path, *rows())
    spoil(tmp_path)
    with pytest.raises(AimfairError, match=message):
        read(tmp_path)


@FORMS
def test_unknown_attributes_are_refused_with_the_nearest(tmp_path: Path, form: Form) -> None:
    form.write(tmp_path, *rows())
    with pytest.raises(ConfigError, match=r"data.protected: found 'male', .*; did you mean 'Male'\?"):
        load_splits(settings(tmp_path, protected="male"))
    with pytest.raises(ConfigError, match=r"data.audit: found 'Yung', .*; did you mean 'Young'\?"):
        load_splits(settings(tmp_path, audit=["Yung"]))


@FORMS
def test_training_is_biased_first_by_number_and_the_rest_official(tmp_path: Path, log: Warnings, form: Form) -> None:
    form.write_data_set(tmp_path)
    splits = load_splits(settings(tmp_path, minority_ratio=0.25, train_images=10), log=log)
    numbers = [int(name[-10:-4]) for name in splits.train.ids]
    # Groups (y, a) = (0, 0) and (1, 1) have one image, (0, 1) and (1, 0) four, each the first that there are.
    assert numbers == [1, 2, 4, 6, 8, 13, 14, 15, 17, 19]
    assert splits.train.group_counts(2, 2).tolist() == [[1, 4], [4, 1]]
    assert [int(name[-10:-4]) for name in (*splits.validation.ids, *splits.test.ids)] == list(range(25, 41))
    assert splits.test.group_counts(2, 2).tolist() == [[2, 2], [2, 2]]
    assert splits.test.images.shape == (8, 8, 8, 3)
    assert log.messages == []
    again = load_splits(settings(tmp_path, minority_ratio=0.25, train_images=10, seed=7))
    assert again.train.ids == splits.train.ids
    np.testing.assert_array_equal(again.train.images, splits.train.images)


def test_as_many_training_images_as_the_bias_allows(tmp_path: Path) -> None:
    TORCHVISION.write_data_set(tmp_path)
    assert load_splits(settings(tmp_path, minority_ratio=0.5)).train.group_counts(2, 2).tolist() == [[3, 6], [6, 3]]
    with pytest.raises(AimfairError, match=r"\(y=0, a=1\), 'not Smiling' by 'Male', has 6 images.*18 images are"):
        load_splits(settings(tmp_path, minority_ratio=0.5, train_images=20))


def test_an_intersection_is_biased_first_by_number(tmp_path: Path) -> None:
    TORCHVISION.write_data_set(tmp_path)
    changes = {"intersect_with": ["Young"], "majority": [2, 1], "minority_ratio": 1 / 3, "train_images": 12}
    splits = load_splits(settings(tmp_path, **changes))
    assert splits.train.group_counts(2, 4).tolist() == [[1, 1, 3, 1], [1, 3, 1, 1]]
    assert [int(name[-10:-4]) for name in splits.train.ids] == [1, 2, 3, 4, 6, 10, 13, 14, 15, 16, 19, 23]
    assert splits.attribute_names == {"Male": ("not Male", "Male"), "Young": ("not Young", "Young")}
    np.testing.assert_array_equal(
        splits.test.attributes["Male"] * 2 + splits.test.attributes["Young"], splits.test.protected
    )


# -- the official list, as the paper counts it -----------------------------------------------------------------------


@pytest.mark.parametrize(("target", "protected"), celeba._PUBLISHED)
def test_the_published_counts_agree_with_each_other(target: str, protected: str) -> None:
    """19,962 test images, of which 9,987 smile, 15,114 are young and 7,715 male, whichever task counts them."""
    counts = np.array(celeba.published_counts(target, protected))
    sizes = {"Smiling": 9987, "Young": 15114, "Male": 7715}
    assert counts.sum() == 19962
    assert counts.sum(axis=1)[1] == sizes[target]
    assert counts.sum(axis=0)[1] == sizes[protected]
    assert celeba.published_counts("Bald", "Male") is None


def official(root: Path, test_counts: np.ndarray) -> Catalogue:
    """A made-up list of the official length with such test groups, Smiling by Male; the rest in turn."""
    sizes = (162_770, 19_867)
    numbers = np.concatenate([np.arange(size) % 4 for size in sizes] + [np.repeat(np.arange(4), test_counts.ravel())])
    return Catalogue(
        root=root,
        listing="list_eval_partition.txt",
        files=tuple(f"img_align_celeba/{number:06}.jpg" for number in range(1, len(numbers) + 1)),
        split=np.repeat([0, 1, 2], [*sizes, int(test_counts.sum())]),
        labels=Labels(
            Attribute(numbers // 2, ("not Smiling", "Smiling")), Attribute(numbers % 2, ("not Male", "Male")), {}
        ),
        rows=len(numbers),
    )


def test_a_list_of_the_official_length_is_compared_with_the_published_counts(tmp_path: Path) -> None:
    published = np.array(celeba.published_counts("Smiling", "Male"))
    good = official(tmp_path, published)
    assert celeba.differs_from_published(good, settings(tmp_path)) is None
    bad = official(tmp_path, published + np.array([[1, -1], [0, 0]]))
    message = celeba.differs_from_published(bad, settings(tmp_path))
    assert message is not None
    assert "found [[5355, 4620], [6893, 3094]], expected [[5354, 4621], [6893, 3094]] as published" in message
    assert celeba.differs_from_published(bad, settings(tmp_path, target="Bald")) is None
    crossed = replace(bad.labels, protected=Attribute(bad.protected * 2 + 1, tuple("abcd")))
    crossed = replace(crossed, attributes={"Male": bad.labels.protected})
    again = celeba.differs_from_published(replace(bad, labels=crossed), settings(tmp_path, intersect_with=["Young"]))
    assert again == message
    shorter = bad.subset(np.arange(1000))
    assert celeba.differs_from_published(replace(shorter, rows=1000), settings(tmp_path)) is None


def test_a_run_is_warned_of_another_list(tmp_path: Path, log: Warnings, monkeypatch: pytest.MonkeyPatch) -> None:
    TORCHVISION.write_data_set(tmp_path)
    monkeypatch.setattr(celeba, "OFFICIAL_IMAGES", 40)
    load_splits(settings(tmp_path), log=log)
    assert len(log.messages) == 1
    assert "found [[2, 2], [2, 2]], expected [[5354, 4621], [6893, 3094]]" in log.messages[0]


def test_the_rule_gives_the_sizes_of_the_paper(tmp_path: Path) -> None:
    """20,000 of a list of the official length: 1000, 9000, 9000 and 1000, each the first of its group."""
    catalogue = official(tmp_path, np.array(celeba.published_counts("Smiling", "Male")))
    train = np.flatnonzero(catalogue.split == 0)
    target, protected = catalogue.target[train], catalogue.protected[train]
    chosen = biased_indices(target, protected, [1, 0], 1 / 9, 20_000, None)
    for y, a, size in ((0, 0, 1000), (0, 1, 9000), (1, 0, 9000), (1, 1, 1000)):
        members = np.flatnonzero((target == y) & (protected == a))
        np.testing.assert_array_equal(np.intersect1d(chosen, members), members[:size])
    assert len(chosen) == 20_000
