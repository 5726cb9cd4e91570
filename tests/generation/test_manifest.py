"""The manifest as training reads it: sets, images, and what is refused."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from aimfair.base.errors import AimfairError
from aimfair.data.cache import decode_files
from aimfair.data.decode import Fit, decode
from aimfair.generation.manifest import Manifest
from tests.data.conftest import cache_home, save_image  # noqa: F401 - a fixture


def row(number: int, sets: list[str], **changes: object) -> str:
    return json.dumps(
        {"file": name(number), "image": number, "y": number % 2, "a": number // 2 % 2, "prompt": "p", "replica": 0}
        | {"text": "a red seven", "seed": number, "sets": sets, "attempt": 0, "rejected": [], **changes}
    )


def name(number: int) -> str:
    return f"images/{number:06}-{'ab' * 6}.png"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [row(n, [["balanced"], ["biased"], ["balanced", "biased"]][n % 3]) for n in (5, 1, 4, 2, 0, 3)]
    (tmp_path / "manifest.jsonl").write_text("\n".join(rows) + "\n")
    for number in range(6):
        save_image(tmp_path / name(number), number, (16, 16))
    return tmp_path


@pytest.mark.parametrize(("which", "numbers"), [("balanced", [5, 2, 0, 3]), ("biased", [5, 1, 4, 2])])
def test_a_set_in_the_order_of_the_manifest(folder: Path, which: str, numbers: list[int]) -> None:
    images = Manifest(folder).load(which, 8, "crop")  # type: ignore[arg-type]
    assert images.ids == tuple(map(name, numbers))
    assert images.target.tolist() == [number % 2 for number in numbers]
    assert images.protected.tolist() == [number // 2 % 2 for number in numbers]
    np.testing.assert_array_equal(images.images, np.stack([decode(folder / name, 8, 1000) for name in images.ids]))


def test_decoded_images_stay_in_the_folder(folder: Path) -> None:
    Manifest(folder).load("balanced", 8, "crop")
    assert list((folder / "decoded").glob("*.rgb"))
    assert not list(Path(os.environ["XDG_CACHE_HOME"]).iterdir())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file": "images/', r"manifest.jsonl:7: line: Invalid JSON: .* restore the file"),
        ("[]", r"manifest.jsonl:7: line: "),
        (row(9, ["balanced"], file="../../x.png"), r"manifest.jsonl:7: file: "),
        (row(9, ["balanced"], y="1"), r"manifest.jsonl:7: y: Input should be a valid integer"),
        (row(9, ["balanced"], a=-1), r"manifest.jsonl:7: a: Input should be greater than or equal to 0"),
        (row(9, ["balanced"]).replace('"sets"', '"set"'), r"manifest.jsonl:7: sets: Field required"),
        (row(9, ["balanced"], file=name(0)), rf"manifest.jsonl: '{name(0)}' is in several lines, expected one"),
        (row(9, ["balanced"]), rf"{name(9)}: no such file; run: aimfair generate"),
    ],
)
def test_damage_is_refused(folder: Path, line: str, message: str) -> None:
    with (folder / "manifest.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(AimfairError, match=message):
        Manifest(folder).load("balanced", 8, "crop")


def test_nothing_to_load_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "manifest.jsonl").write_text(row(0, ["biased"]) + "\n")
    with pytest.raises(AimfairError, match=r"manifest.jsonl: the balanced set has no images; run: aimfair generate"):
        Manifest(folder).load("balanced", 8, "crop")
    with pytest.raises(AimfairError, match=r"other/manifest.jsonl: the balanced set has no images; run: aimfair gen"):
        Manifest(folder / "other").load("balanced", 8, "crop")


@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_images_become_squares_as_real_ones_do(folder: Path, fit: Fit) -> None:
    save_image(folder / name(0), 0, (30, 10))
    images = Manifest(folder).load("balanced", 8, fit)
    here = images.ids.index(name(0))
    real = decode_files(folder, [images.ids[here]], 8, 1000, fit=fit)
    np.testing.assert_array_equal(images.images[here], real.images[0])
