"""``aimfair scan``: what it finds in made-up folders of each kind, that it says what a run says and changes nothing."""

import itertools
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from aimfair.base.errors import AimfairError, ConfigError
from aimfair.base.interrupt import Interrupted
from aimfair.commands import cli
from aimfair.config import Config
from aimfair.data import cache
from aimfair.data.load import load_splits
from aimfair.run.directory import Run
from aimfair.scan import advice, examine
from aimfair.scan.examine import association, scan
from aimfair.scan.images import near_pairs
from aimfair.scan.results import Scan
from aimfair.scan.show import show
from aimfair.stages import generate
from tests.data.conftest import save_image
from tests.generation.samples import prompt_settings
from tests.training.samples import RESNET

SIZE = 8
SPLITS = {"train": 24, "val": 8, "test": 8}


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def config(root: Path, kind: str = "table", **data: Any) -> Config:
    names = {"table": ("shape", "colour"), "celeba": ("Smiling", "Male"), "utkface": ("gender", "white")}[kind]
    return Config.model_validate(
        {
            "data": {"kind": kind, "root": root, "target": names[0], "protected": names[1], "image_size": SIZE}
            | {"minority_ratio": 0.5, **data},
            "prompts": prompt_settings().model_dump(),
            "model": {"config": RESNET},
            "methods": {"full": {"rule": "all"}},
            "default_method": "full",
            "evaluate": {"small_group": 2},
            "sensitivity": {"batch_size": 2},
        }
    )


# -- folders -----------------------------------------------------------------------------------------------------------


def table(root: Path) -> Path:
    """Groups in turn; 24, 8 and 8 images 000.png, 001.png, ..."""
    splits = itertools.chain.from_iterable([split] * size for split, size in SPLITS.items())
    lines = ["file,split,shape,colour"]
    for number, split in enumerate(splits):
        save_image(root / f"{number:03}.png", number, (10, 10))
        shape, colour = divmod(number % 4, 2)
        lines.append(f"{number:03}.png,{split},{('ball', 'cube')[shape]},{('blue', 'red')[colour]}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


def celeba(root: Path) -> Path:
    """The same, named 000001.jpg, ..., with one training image more of group (0, 0) than a biased set takes."""
    attributes, partition = ["40", "Male Smiling"], []
    for number in range(40):
        name = f"{number + 1:06}.jpg"
        save_image(root / "img_align_celeba" / name, number, (12, 10))
        smiling, male = divmod(number % 4, 2)
        attributes.append(f"{name} {2 * male - 1:2} {2 * smiling - 1:2}")
        partition.append(f"{name} {0 if number < 24 else 1 if number < 32 else 2}")
    (root / "list_attr_celeba.txt").write_text("\n".join(attributes) + "\n")
    (root / "list_eval_partition.txt").write_text("\n".join(partition) + "\n")
    return root


def utkface(root: Path) -> Path:
    for number in range(80):
        gender, race = divmod(number % 4, 2)
        save_image(root / f"{20 + number}_{gender}_{race}_2017{number:04}.jpg.chip.jpg", number)
    return root


KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[int], str]]] = {
    "table": (table, lambda number: f"{number:03}.png"),
    "celeba": (celeba, lambda number: f"img_align_celeba/{number + 1:06}.jpg"),
    "utkface": (
        utkface,
        lambda number: f"{20 + number}_{number % 4 // 2}_{number % 2}_2017{number:04}.jpg.chip.jpg",
    ),
}
"""Kind -> what makes a folder of it, and the file of each number."""


def bomb(path: Path) -> None:
    """A PNG of a kilobyte that claims 100 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def levels(found: Scan) -> dict[str, list[str]]:
    result: dict[str, list[str]] = {"error": [], "warning": [], "note": []}
    for problem in found.problems:
        result[problem.level].append(problem.what)
    return result


# -- what is found -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_clean_data_set(tmp_path: Path, kind: str) -> None:
    settings = config(KINDS[kind][0](tmp_path), kind)
    found, error = scan(settings)
    assert error is None
    assert found.taken.refusal is None
    assert found.rows is not None
    assert found.files is not None
    assert found.duplicates is not None
    assert (found.rows.left_out, found.files.left_out) == (0, 0)
    assert levels(found)["error"] == levels(found)["warning"] == []
    counts = {"all": [[20, 20], [20, 20]]}
    if kind != "utkface":
        counts = {"train": [[6, 6], [6, 6]], "val": [[2, 2], [2, 2]], "test": [[2, 2], [2, 2]]}
    assert found.groups == counts
    assert found.association == 0
    assert found.images is not None
    assert found.images.total == found.rows.total == found.files.total
    near = found.duplicates.near
    assert near is not None
    assert (near.pairs, near.complete) == (0, True)
    splits = load_splits(settings.data)
    parts = {"train": splits.train, "val": splits.validation, "test": splits.test}
    assert found.taken.groups == {name: part.group_counts(2, 2).tolist() for name, part in parts.items()}
    if kind != "table":
        assert found.taken.groups["train"] != counts.get("train")
        assert found.taken.association is not None
        assert found.taken.association > 0.2


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: os.truncate(path, 150), "cannot be decoded: "),
    "empty": (lambda path: path.write_bytes(b""), "empty file"),
    "html": (
        lambda path: path.write_text("<!DOCTYPE html>"),
        "not JPEG, PNG or WebP, it begins with b'<!DOCTYPE html>'",
    ),
    "missing": (lambda path: path.unlink(), "no such file"),
    "bomb": (bomb, "10000 x 10000 pixels, more than 50,000,000 (data.max_pixels)"),
}


@pytest.mark.parametrize(
    ("kind", "damage"),
    # of UTKFace a name in the folder is all that lists an image
    [pair for pair in itertools.product(KINDS, DAMAGE) if pair != ("utkface", "missing")],
)
def test_bad_files_are_counted_by_reason(tmp_path: Path, kind: str, damage: str) -> None:
    make, file = KINDS[kind]
    harm, reason = DAMAGE[damage]
    make(tmp_path)
    bad = [file(number) for number in (0, 5)]
    for name in bad:
        harm(tmp_path / name)
    found, error = scan(config(tmp_path, kind))
    assert found.files is not None
    assert found.files.left_out == 2
    assert sum(one.count for one in found.files.reasons) == 2
    assert all(one.reason.startswith(reason) for one in found.files.reasons)
    assert sorted(name for one in found.files.reasons for name, _ in one.examples) == bad
    assert error is not None, "two files are more than a hundredth"
    with pytest.raises(AimfairError) as refused:
        load_splits(config(tmp_path, kind).data)
    assert str(error) == str(refused.value) == found.taken.refusal
    assert levels(found)["error"] == [str(error)]
    found, error = scan(config(tmp_path, kind, max_bad_share=0.1))
    assert error is None
    assert any("2 of " in line and "files cannot be used" in line for line in levels(found)["warning"])


def test_bad_rows_are_counted_by_reason(tmp_path: Path) -> None:
    celeba(tmp_path)
    path = tmp_path / "list_attr_celeba.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], lines[4] + " 1", lines[5] + " 1", *lines[6:-1], "000041.jpg 1 1"]) + "\n")
    found, error = scan(config(tmp_path, "celeba"))
    assert found.rows is not None
    assert [(one.reason, one.count) for one in found.rows.reasons] == [
        ("not in list_attr_celeba.txt", 3),
        ("expected a file and 2 values of -1 or 1", 2),
        ("not in list_eval_partition.txt", 1),
    ]
    assert error is not None
    assert "rows of" in str(error)


def test_names_that_are_not_utkfaces_are_counted(tmp_path: Path) -> None:
    utkface(tmp_path)
    for name in ("39_1_2017.jpg", "1_2_0_2017.jpg", os.fsdecode(b"\xff_x.jpg")):
        save_image(tmp_path / name, 999)
    found, error = scan(config(tmp_path, "utkface", max_bad_share=0.1))
    assert error is None
    assert found.rows is not None
    assert (found.rows.total, found.rows.left_out) == (83, 3)
    assert [(one.reason, [name for name, _ in one.examples]) for one in found.rows.reasons] == [
        ("the name is not [age]_[gender]_[race]_[date].jpg", ["39_1_2017.jpg", r"\udcff_x.jpg"]),
        ("the gender is ..., expected ... to ...", ["1_2_0_2017.jpg"]),
    ]
    found.save(tmp_path / "scan.json")


@pytest.mark.parametrize(
    ("line", "message", "count"),
    [
        ("000.png,train,cube,blue", "'000.png' is at labels.csv:2 and labels.csv:42, with different values", 2),
        ("x.png,holdout,cube,blue", "found split 'holdout', expected one of train, val, test", 1),
    ],
)
def test_rows_of_a_table_that_cannot_be_used_are_counted(tmp_path: Path, line: str, message: str, count: int) -> None:
    table(tmp_path)
    with (tmp_path / "labels.csv").open("a") as file:
        file.write(line + "\n")
    found, error = scan(config(tmp_path))
    assert found.rows is not None
    assert (found.rows.total, found.rows.left_out) == (41, count)
    assert found.rows.reasons[0].examples[-1] == ("labels.csv:42", message)
    assert f"{count} of 41 rows of" in str(error)
    with pytest.raises(AimfairError, match=f"{count} of 41 rows of"):
        load_splits(config(tmp_path).data)


# -- twice -------------------------------------------------------------------------------------------------------------


def copy_pixels(root: Path, source: int, target: int) -> None:
    """The same image in another file: other bytes, the same pixels."""
    with Image.open(root / f"{source:03}.png") as image:
        image.save(root / f"{target:03}.png", compress_level=1)


@pytest.mark.parametrize(
    ("source", "target", "field", "refused"),
    [
        (0, 4, "within", False),
        (0, 1, "contradictory", False),
        (0, 24, "train_val", False),
        (0, 32, "test", True),
        (24, 32, "test", True),
    ],
)
def test_copies(tmp_path: Path, source: int, target: int, field: str, refused: bool) -> None:
    copy_pixels(table(tmp_path), source, target)
    found, error = scan(config(tmp_path))
    assert found.duplicates is not None
    for name in ("within", "contradictory", "train_val", "test"):
        copies = getattr(found.duplicates, name)
        expected = [[f"{source:03}.png", f"{target:03}.png"]] if name == field else []
        assert (copies.images, copies.files, copies.examples) == (len(expected), 2 * len(expected), expected), name
    assert found.duplicates.near is not None
    assert found.duplicates.near.pairs == 0, "what is equal is no near-copy"
    assert (error is not None) == refused
    names = f"'{source:03}.png' and '{target:03}.png'"
    assert any(names in problem.what for problem in found.problems)
    if refused:
        assert "1 images of the test set are also in another split" in str(error)


def test_a_leak_with_another_label_is_both(tmp_path: Path) -> None:
    copy_pixels(table(tmp_path), 0, 33)
    found, _ = scan(config(tmp_path))
    assert found.duplicates is not None
    assert (found.duplicates.test.images, found.duplicates.contradictory.images) == (1, 1)


def test_leaks_among_images_that_no_run_takes_are_found(tmp_path: Path) -> None:
    """A biased CelebA takes the first of each group: not the last training images of groups (0, 0) and (1, 1)."""
    celeba(tmp_path)
    folder = tmp_path / "img_align_celeba"
    shutil.copy(folder / "000037.jpg", folder / "000021.jpg")
    found, error = scan(config(tmp_path, "celeba"))
    assert error is None
    assert found.duplicates is not None
    assert found.duplicates.test.examples == [["img_align_celeba/000021.jpg", "img_align_celeba/000037.jpg"]]
    assert any("in the test set and in another split" in line for line in levels(found)["warning"])


def photograph(number: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Smooth, as photographs are."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def test_images_that_look_alike_in_two_splits(tmp_path: Path) -> None:
    """Saved again with loss, or smaller: similar, not equal; others are not."""
    table(tmp_path)
    for number in range(40):
        photograph(number).save(tmp_path / f"{number:03}.png")
    for source, target, options in ((1, 33, {"quality": 60}), (2, 26, {"quality": 90}), (3, 7, {"quality": 60})):
        photograph(source, (48, 48)).save(tmp_path / f"{target:03}.png", "JPEG", **options)
    Image.new("RGB", (64, 64), (90, 90, 90)).save(tmp_path / "004.png")
    Image.new("RGB", (64, 64), (91, 90, 90)).save(tmp_path / "036.png")
    found, error = scan(config(tmp_path, image_size=48))
    assert error is None
    assert found.duplicates is not None
    near = found.duplicates.near
    assert near is not None
    assert (near.pairs, near.with_test) == (2, 1), "within a split, and of one colour, they are no near-copies"
    assert near.examples == [("001.png", "033.png"), ("002.png", "026.png")]
    assert any(
        "2 pairs of images in different splits look alike, 1 of them" in line for line in levels(found)["warning"]
    )


def brute(hashes: np.ndarray, part: np.ndarray, bits: int) -> list[tuple[int, int]]:
    return [
        (a, b)
        for a, b in itertools.combinations(range(len(hashes)), 2)
        if part[a] != part[b] and (int(hashes[a]) ^ int(hashes[b])).bit_count() <= bits
    ]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 3))
def test_near_pairs_are_all_of_them(seed: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, 12, dtype=np.uint64)[rng.integers(0, 12, 60)]
    for _ in range(3):
        flips = np.uint64(1) << rng.integers(0, 64, 60).astype(np.uint64)
        hashes = np.where(rng.random(60) < 0.6, hashes ^ flips, hashes)
    part = rng.integers(0, 3, 60)
    pairs, complete = near_pairs(hashes, part, bits)
    assert complete
    assert [tuple(pair) for pair in pairs.tolist()] == brute(hashes, part, bits)


def test_near_pairs_of_very_many_equal_hashes_are_not_all() -> None:
    """The time stays bounded, and it is said."""
    pairs, complete = near_pairs(np.zeros(800, dtype=np.uint64), np.arange(800) % 2)
    assert not complete
    assert 0 < len(pairs) < 800 * 200
    assert near_pairs(np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64))[1]


def test_near_pairs_of_many_hashes_take_seconds() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 200_000, dtype=np.uint64)
    hashes[100_000:100_020] = hashes[:20] ^ np.uint64(1 << 63 | 1 << 20 | 1)
    start = time.process_time()
    pairs, complete = near_pairs(hashes, np.repeat([0, 2], 100_000))
    assert time.process_time() - start < 20  # 2 here; each with each would be an hour
    assert complete
    assert pairs.tolist() == [[number, 100_000 + number] for number in range(20)]


# -- images, groups, bias ----------------------------------------------------------------------------------------------


def test_sizes_formats_and_grey(tmp_path: Path) -> None:
    table(tmp_path)
    Image.fromarray(np.arange(240, dtype=np.uint8).reshape(12, 20)).save(tmp_path / "000.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph(1, (30, 10)).save(tmp_path / "001.png", "JPEG", exif=exif)
    photograph(2, (4, 4)).save(tmp_path / "002.png", "WEBP")
    found, _ = scan(config(tmp_path))
    assert found.images is not None
    assert found.images.formats == {"JPEG": 1, "PNG": 38, "WEBP": 1}
    assert (found.images.width.least, found.images.width.greatest) == (4, 20)
    assert found.images.height.greatest == 30, "as it is seen"
    assert found.images.elongation.greatest == 3
    assert (found.images.not_square, found.images.smaller, found.images.grey) == (2, 1, 1)
    assert any("not square and will be cropped to their center" in line for line in levels(found)["note"])
    stretched, _ = scan(config(tmp_path, fit="stretch"))
    assert any("not square and will be stretched" in line for line in levels(stretched)["note"])


def test_groups_that_are_empty_or_small(tmp_path: Path) -> None:
    table(tmp_path)
    path = tmp_path / "labels.csv"
    lines = path.read_text().splitlines()
    cut = [line for line in lines if not (",cube,red" in line and ",train," in line) and not line.startswith("032")]
    cut = [line for line in cut if not (",cube,blue" in line and ",test," in line)]
    path.write_text("\n".join(cut) + "\n")
    found, error = scan(config(tmp_path))
    assert error is None
    warnings = levels(found)["warning"]
    assert "group ('cube', 'red') has no train images: no model can learn it from real images" in warnings
    assert "group ('cube', 'blue') has no test images: its accuracy is undefined" in warnings
    assert any("fewer than 2 test images (evaluate.small_group): ('ball', 'blue') 1;" in line for line in warnings)


def test_many_groups_share_a_line() -> None:
    names = {"target_names": [f"t{y}" for y in range(50)], "protected_names": ["f", "m"]}
    groups = {"train": [[1, 1]] * 47 + [[0, 0]] * 3, "test": [[1, 1]] * 50}
    taken = SimpleNamespace(groups=groups)
    made_up: Any = SimpleNamespace(**names, groups=groups, taken=taken, rows=None, small_group=2)
    empty, small = (problem.what for problem in advice._groups(made_up))
    assert empty.startswith("6 groups have no train images: ('t47', 'f'), ('t47', 'm'), ('t48', 'f'), ")
    assert small.endswith("('t9', 'f') 1, ('t9', 'm') 1, and 80 more; their accuracies will be uncertain")


def test_a_biased_set_that_is_too_large_is_refused_as_by_a_run(tmp_path: Path) -> None:
    table(tmp_path)
    settings = config(tmp_path, train_images=24)
    found, error = scan(settings)
    with pytest.raises(AimfairError, match="18 images are possible") as refused:
        load_splits(settings.data)
    assert found.taken.refusal == str(error) == str(refused.value)
    assert found.groups["train"] == [[6, 6], [6, 6]]
    found, error = scan(config(tmp_path, train_images=18))
    assert error is None
    assert found.taken.groups is not None
    assert found.taken.groups["train"] == [[3, 6], [6, 3]]


def test_a_missing_class_is_refused_as_by_a_run(tmp_path: Path) -> None:
    table(tmp_path)
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if ",train,cube" not in line))
    _, error = scan(config(tmp_path))
    assert "split 'train' has no image of class 'cube'" in str(error)


def test_settings_that_contradict_the_labels(tmp_path: Path) -> None:
    table(tmp_path)
    path = tmp_path / "labels.csv"
    path.write_text(path.read_text().replace("train,ball,red", "train,ball,blue").replace("039.png,test,cube,red", ""
                    "039.png,test,cube,green"))  # fmt: skip
    found, error = scan(config(tmp_path))
    line = "prompts.protected: found 2 lists of words, expected 3, one for each of 'blue', 'green', 'red'"
    assert isinstance(error, ConfigError), "it is what a run would say"
    assert found.taken.refusal == str(error) == line
    assert levels(found)["error"] == [line]
    path.write_text(path.read_text().replace("green", "red"))
    warnings = levels(scan(config(tmp_path))[0])["warning"]
    assert any(line.startswith("data.majority: 'red' for class 'ball', but most of its training") for line in warnings)


def test_a_majority_of_another_length_is_a_problem_and_not_the_end(tmp_path: Path) -> None:
    table(tmp_path)
    path = tmp_path / "labels.csv"
    path.write_text(path.read_text().replace("000.png,train,ball", "000.png,train,disc"))
    found, error = scan(config(tmp_path))
    assert str(error) == "data.majority: found 2 values, expected one for each of 3 target classes"
    assert found.groups["train"] == [[5, 6], [6, 6], [1, 0]]
    assert found.problems[0].what == str(error)
    assert "--data.majority 1,0,0 would name" in found.problems[0].advice


@pytest.mark.parametrize(("old", "new"), [(",ball,", ",BALL,"), (",red", ",Red")], ids=["target", "protected"])
def test_spellings_of_one_value_are_named_and_no_advice_is_drawn_from_them(tmp_path: Path, old: str, new: str) -> None:
    table(tmp_path)
    path = tmp_path / "labels.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line.replace(old, new) if number % 3 else line for number, line in enumerate(lines)))
    found, error = scan(config(tmp_path))
    assert error is not None
    assert "prompts.protected: found 2 lists" in str(error) or "data.majority: found 2 values" in str(error)
    first, second, *others = found.problems
    assert first.what == str(error)
    assert first.advice.startswith("first give each value one spelling, then scan again")
    assert second.what.startswith(f"data.{'target' if 'ball' in old else 'protected'}: values of ")
    assert found.spellings[0].groups == [sorted([(old.strip(","), 6), (new.strip(","), 14)])]
    assert not any(word in problem.what for problem in others for word in ("group", "data.majority", "associated"))


def test_images_of_12_bits_are_named(tmp_path: Path) -> None:
    table(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 4096, (10, 10), dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / "003.png")
    Image.fromarray(pixels * 16).save(tmp_path / "004.png")
    found, _ = scan(config(tmp_path))
    assert found.images is not None
    assert (found.images.dark, found.images.dark_examples) == (1, ["003.png"])
    assert any("1 of 40 images are nearly black" in line for line in levels(found)["warning"])


def test_attributes_are_counted_by_value_and_split(tmp_path: Path) -> None:
    table(tmp_path)
    path = tmp_path / "labels.csv"
    head, *rows = path.read_text().splitlines()
    rows = [f"{row},{'old' if number % 8 == 0 else 'new'},{number % 3}" for number, row in enumerate(rows)]
    path.write_text("\n".join([f"{head},age,size", *rows]) + "\n")
    found, _ = scan(config(tmp_path, intersect_with=["size"], audit=["age"]))
    assert found.protected == "colour x size"
    assert found.protected_names[:2] == ["blue, 0", "blue, 1"]
    counts = {one.name: (one.names, one.counts) for one in found.attributes}
    assert counts["age"] == (["new", "old"], {"train": [21, 3], "val": [7, 1], "test": [7, 1]})
    assert counts["colour"] == (["blue", "red"], {"train": [12, 12], "val": [4, 4], "test": [4, 4]})
    assert list(counts) == ["colour", "size", "age"]
    line = "attribute 'age': values with fewer than 2 test images (evaluate.small_group): 'old' 1"
    assert line in levels(found)["warning"]


# -- generate.folder ---------------------------------------------------------------------------------------------------


def synthetic_folder(root: Path, each: int = 10) -> Path:
    for y, a, number in itertools.product(range(2), range(2), range(each)):
        save_image(root / f"{y}_{a}/{number}.png", 10_000 + number + 100 * (2 * y + a))
    return root


def with_folder(root: Path, folder: Path, **generate: Any) -> Config:
    made = {"folder": folder, "balanced_per_group": 5, "biased_total": 6, **generate}
    return Config.model_validate({**config(root).model_dump(), "generate": made})


def run_says(settings: Config, path: Path) -> str | None:
    with Run.open(path, settings, quiet=True) as run:
        try:
            generate.run(run)
        except AimfairError as error:
            return str(error)
    return None


def test_images_that_were_made_elsewhere(tmp_path: Path) -> None:
    folder = synthetic_folder(tmp_path / "made")
    shutil.copy(folder / "0_0/0.png", folder / "0_0/copy.png")
    shutil.copy(folder / "0_0/1.png", folder / "1_1/two.png")
    found, error = scan(with_folder(table(tmp_path / "data"), folder))
    assert error is None
    assert found.imported is not None
    assert found.imported.found == [[11, 10], [10, 11]]
    assert found.imported.usable == [[9, 10], [10, 10]]
    assert (found.imported.copies, found.imported.two_groups) == (1, 2)
    assert found.imported.leaks == {"train": 0, "val": 0, "test": 0}
    assert sum("left out, " in line for line in levels(found)["warning"]) == 2


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        (lambda data, made: shutil.copy(data / "032.png", made / "0_1/x.png"), "are real images of the test set"),
        (lambda data, made: shutil.rmtree(made / "1_0"), r"group (y=1, a=0) has 0, 7 are needed"),
        (lambda data, made: (made / "1_0").rename(made / "2_0"), "found group (y=2, a=0)"),
        (lambda data, made: os.truncate(made / "0_0/0.png", 60), "1 of 40 images of"),
        (lambda data, made: shutil.rmtree(made), "is not a folder"),
    ],
)
def test_what_a_run_refuses_of_them_is_an_error(tmp_path: Path, harm: Callable[[Path, Path], Any], line: str) -> None:
    data, made = table(tmp_path / "data"), synthetic_folder(tmp_path / "made")
    harm(data, made)
    settings = with_folder(data, made)
    found, error = scan(settings)
    assert found.imported is not None
    assert line in str(error)
    assert levels(found)["error"] == [str(error)] == [found.imported.refusal]
    assert run_says(settings, tmp_path / "run") == str(error)


def test_training_images_among_them_are_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, made = table(tmp_path / "data"), synthetic_folder(tmp_path / "made")
    shutil.copy(data / "005.png", made / "0_1/x.png")
    settings = with_folder(data, made)
    found, error = scan(settings)
    assert error is None
    assert found.imported is not None
    assert found.imported.leaks == {"train": 1, "val": 0, "test": 0}
    assert found.imported.leak_examples == [("0_1/x.png", "005.png")]
    assert any("real images of training" in line for line in levels(found)["warning"])
    assert run_says(settings, tmp_path / "run") is None
    show(found, Console())
    assert "real images: 1 of train, 0 of val, 0 of test" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("groups", "value"),
    [
        ([[1000, 9000], [9000, 1000]], 0.8),
        ([[10, 10], [10, 10]], 0.0),
        ([[7, 0], [0, 3]], 1.0),
        ([[5, 0, 0], [0, 5, 0], [0, 0, 5]], 1.0),
        ([[5, 5], [0, 0]], None),
        ([[0, 0], [0, 0]], None),
    ],
)
def test_association(groups: list[list[int]], value: float | None) -> None:
    """For two of each it is phi, (ad - bc) / root of the product of the margins."""
    assert association(groups) == value


# -- a run afterwards, the verb, and its output ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_afterwards_decodes_nothing(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(KINDS[kind][0](tmp_path), kind)
    decoded: list[str] = []
    original = cache._build

    def build(entry: Any, request: Any, *rest: Any) -> None:
        decoded.extend(request.files)
        original(entry, request, *rest)

    monkeypatch.setattr(cache, "_build", build)
    first, _ = scan(settings)
    assert first.files is not None
    assert len(decoded) == len(set(decoded)) == first.files.total, "every file once"
    monkeypatch.setattr(cache, "_build", lambda *_, **__: pytest.fail("images are decoded again"))
    load_splits(settings.data)
    assert scan(settings)[0] == first


def test_nothing_of_the_user_is_changed(tmp_path: Path) -> None:
    def state() -> dict[str, tuple[int, bytes]]:
        return {
            str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()
        }

    utkface(tmp_path)
    os.truncate(tmp_path / KINDS["utkface"][1](3), 100)
    before = state()
    scan(config(tmp_path, "utkface"))
    assert state() == before


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration of a table in ``data`` beside it."""
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(config(table(tmp_path / "data")).model_dump(mode="json")))
    return path


def test_the_verb(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "data" / "labels.csv").open("a") as labels:
        labels.write("[red]x\x1b[31m.png,train,ball,blue\n")
    command = ["scan", "--config", str(file), "--quiet", "--data.max_bad_share", "0.1", "--json", "out.json"]
    assert cli.main(command) == 0
    first, second = capsys.readouterr(), (tmp_path / "out.json").read_bytes()
    assert cli.main(command) == 0
    assert (capsys.readouterr(), (tmp_path / "out.json").read_bytes()) == (first, second)
    assert "'ball', 'blue'" in first.out
    assert r"1 x no such file: '[red]x\x1b[31m.png'" in first.out
    assert "\x1b" not in first.out
    assert not (tmp_path / "runs").exists()
    found = Scan.model_validate_json(second)
    assert found.groups["test"] == [[2, 2], [2, 2]]
    assert next(problem.level for problem in found.problems) == "warning"


def test_a_refusal_exits_as_a_run_does_after_all_is_shown(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_pixels(tmp_path / "data", 0, 32)
    json_file = tmp_path / "out.json"
    assert cli.main(["scan", "--config", str(file), "--quiet", "--json", str(json_file)]) == 1
    scanned = capsys.readouterr()
    assert "What a run would use" not in scanned.out
    assert "Decodable images" in scanned.out
    refusal = Scan.model_validate_json(json_file.read_bytes()).taken.refusal
    assert scanned.err == f"error: {refusal}\n"
    assert cli.main(["run", "--config", str(file), "--quiet", "--run", str(tmp_path / "r")]) == 1
    assert capsys.readouterr().err == scanned.err


def test_a_data_set_alone_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No model, no method and no word of a prompt is needed, and a file may be unfinished elsewhere."""
    root = table(tmp_path)
    flags = ["--data.kind", "table", "--data.root", str(root), "--data.target", "shape", "--data.protected", "colour"]
    assert cli.main(["scan", "--quiet", *flags]) == 0
    assert "'ball', 'blue'" in capsys.readouterr().out
    (tmp_path / "begun.yaml").write_text("model: {}\nevaluate: {small_group: 3}\n")
    assert cli.main(["scan", "--quiet", "--config", str(tmp_path / "begun.yaml"), *flags]) == 0
    assert "fewer than 3 test images" in capsys.readouterr().out
    (tmp_path / "begun.yaml").write_text("modle: {}\n")
    assert cli.main(["scan", "--quiet", "--config", str(tmp_path / "begun.yaml"), *flags]) == 2
    assert "begun.yaml:1: modle: unknown key; did you mean model?" in capsys.readouterr().err
    assert cli.main(["scan", "--quiet"]) == 2
    assert "give --config FILE, --run DIR, or the data set itself" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "what"), [("no/such/out.json", "no folder "), (".", "a folder")])
def test_a_json_file_that_cannot_be_is_refused_before_the_scan(
    file: Path,
    tmp_path: Path,
    name: str,
    what: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aimfair.scan.examine.scan", lambda *_, **__: pytest.fail("scanned"))
    assert cli.main(["scan", "--config", str(file), "--quiet", "--json", str(tmp_path / name)]) == 2
    assert f"found {what}" in capsys.readouterr().err


def test_digits_have_no_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["scan", "--config", "demo", "--quiet"]) == 0
    assert "generated, so there are no files" in capsys.readouterr().out


def test_a_folder_that_is_not_there(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["scan", "--config", str(file), "--quiet", "--data.root", "/nowhere/at/all"]) == 2
    assert capsys.readouterr().err.startswith("error: data.root: found /nowhere/at/all, which is not a folder")


def test_a_stop_is_no_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(examine, "load_splits", stopped)
    with pytest.raises(Interrupted):
        scan(config(table(tmp_path)))


def test_ctrl_c(file: Path) -> None:
    """While images are looked at: in a process of its own, which the signal is for."""
    program = (
        "import os, signal, sys\n"
        "from aimfair.commands.cli import main\n"
        "from aimfair.scan import images\n"
        "def dhash(image):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    return '0'\n"
        "images.dhash = dhash\n"
        f"sys.exit(main(['scan', '--config', {str(file)!r}, '--quiet']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    assert done.stdout == ""
    assert "stopped by SIGINT; the same command starts over" in done.stderr
    assert "Traceback" not in done.stderr
