import json
from pathlib import Path

import numpy as np
import pytest

from aimfair.base.errors import AimfairError
from aimfair.data.cache import decode_files
from aimfair.data.decode import Fit, decode
from aimfair.generation import synthetic
from tests.data.conftest import save_image


def row(number: int, sets: list[str], **changes: object) -> str:
    return json.dumps(
        {"file": f"images/{number:06}-ab.png", "image": number, "y": number % 2, "a": number // 2 % 2}
        | {"prompt": "p", "text": "a red seven", "replica": 0, "seed": number, "sets": sets, "attempt": 0, **changes}
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [row(n, [["balanced"], ["biased"], ["balanced", "biased"]][n % 3]) for n in (5, 1, 4, 2, 0, 3)]
    (tmp_path / "manifest.jsonl").write_text("\n".join(rows) + "\n")
    for number in range(6):
        save_image(tmp_path / f"images/{number:06}-ab.png", number, (16, 16))
    return tmp_path


@pytest.mark.parametrize(("which", "numbers"), [("balanced", [5, 2, 0, 3]), ("biased", [5, 1, 4, 2])])
def test_a_set_in_the_order_of_the_manifest(folder: Path, which: str, numbers: list[int]) -> None:
    images = synthetic.load(folder, which, 8, "crop")  # type: ignore[arg-type]
    assert images.ids == tuple(f"images/{number:06}-ab.png" for number in numbers)
    assert images.target.tolist() == [number % 2 for number in numbers]
    assert images.protected.tolist() == [number // 2 % 2 for number in numbers]
    np.testing.assert_array_equal(images.images, np.stack([decode(folder / name, 8, 1000) for name in images.ids]))


def test_decoded_images_stay_in_the_folder(folder: Path, cache_home: Path) -> None:
    synthetic.load(folder, "balanced", 8, "crop")
    assert list((folder / "decoded").glob("*.rgb"))
    assert not list(cache_home.iterdir())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file": "images/', r"manifest.jsonl:7: JSONDecodeError"),
        ("[]", r"manifest.jsonl:7: TypeError"),
        (row(0, ["balanced"], file="../../x.png"), r"manifest.jsonl:7: ValueError: found file '../../x.png'"),
        (row(0, ["balanced"], y="1"), r"manifest.jsonl:7: ValueError: found another kind of y"),
        (row(0, ["balanced"], a=-1), r"manifest.jsonl:7: ValueError: found another kind of y"),
        (json.dumps({"file": "x.png", "y": 0, "a": 0}), r"manifest.jsonl:7: KeyError: 'sets'"),
        (row(9, ["balanced"]), r"images/000009-ab.png: no such file; run: aimfair generate"),
    ],
)
def test_damage_is_refused(folder: Path, line: str, message: str) -> None:
    with (folder / "manifest.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(AimfairError, match=message):
        synthetic.load(folder, "balanced", 8, "crop")


def test_nothing_to_load_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "manifest.jsonl").write_text(row(0, ["biased"]) + "\n")
    with pytest.raises(AimfairError, match=r"manifest.jsonl: the balanced set has no images; run: aimfair generate"):
        synthetic.load(folder, "balanced", 8, "crop")
    with pytest.raises(AimfairError, match=r"manifest.jsonl: cannot be read: .*; run: aimfair generate"):
        synthetic.load(folder / "other", "balanced", 8, "crop")


@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_images_become_squares_as_real_ones_do(folder: Path, fit: Fit) -> None:
    save_image(folder / "images/000000-ab.png", 0, (30, 10))
    images = synthetic.load(folder, "balanced", 8, fit)
    here = images.ids.index("images/000000-ab.png")
    real = decode_files(folder, [images.ids[here]], 8, 1000, fit=fit)
    np.testing.assert_array_equal(images.images[here], real.images[0])
