"""Makes the people emoji in ``aimfair/assets/emoji`` from the packages they are published in.

npm pack emoji-datasource-google@16.0.0 @lobehub/fluent-emoji-3d@1.1.0 emoji-datasource-twitter@16.0.0
python -m tools.premise_images FOLDER_OF_THE_THREE --to aimfair/assets/emoji

A sheet has a row for each person and ten columns: the woman in the five skin tones from light to dark, then the man.
The same packages give the same pixels everywhere, and with one version of Pillow the same bytes.
"""

import argparse
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from aimfair.base.files import replace_file, write_text
from aimfair.data.emoji import PEOPLE, SIZE

LEVELS = 64
"""Of each channel: with 256, the sheets would be half as large again."""

TONES = ("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF")
"""Unicode's modifiers for Fitzpatrick types 1-2, 3, 4, 5 and 6."""

PAIRS = {
    "1F467": "1F466",  # girl, boy
    "1F475": "1F474",  # older woman, older man
    "1F930": "1FAC3",  # pregnant woman, pregnant man
    "1F478": "1F934",  # princess, prince
    "1F936": "1F385",  # Mrs. Claus, Santa Claus
    "1F483": "1F57A",  # woman dancing, man dancing
}
"""Women and men whose code points do not have a part for the gender."""

NAMES = {
    "girl": "child",
    "princess": "royal child",
    "mother christmas": "christmas",
    "dancer": "dancing",
    "mermaid": "merperson",
    "woman": "adult",
}
"""Unicode's name of a woman -> what she and the man have in common, where that is not the rest of the name."""

FACING_RIGHT = "-200D-27A1-FE0F"
"""The end of a sequence that mirrors another."""

BLOND = "1F471"
"""In Twemoji the woman of the second tone is the blond one: two people would share an image."""

PORTRAIT = ("person", "person-gesture", "person-role", "person-fantasy")
ACTION = ("person-activity", "person-sport", "person-resting")
"""Unicode's subgroups of emoji: mostly heads and shoulders, mostly whole bodies."""

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Package:
    """Where a style comes from.

    Attributes:
        file: as npm pack names it. sha256: of the file.
        image: path of an image in it, by its code points in lower case.
        disordered: whether images of the second and third tone are interchanged, though not for every person.
    """

    file: str
    sha256: str
    image: str
    disordered: bool = False


DATA = "emoji-datasource-google-16.0.0.tgz"
"""The package whose emoji.json names all emoji."""

PACKAGES = {
    "noto": Package(
        DATA,
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        "package/img/google/64/{}.png",
    ),
    "fluent": Package(
        "lobehub-fluent-emoji-3d-1.1.0.tgz",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "package/assets/{}.webp",
        disordered=True,
    ),
    "twemoji": Package(
        "emoji-datasource-twitter-16.0.0.tgz",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        "package/img/twitter/64/{}.png",
    ),
}


@dataclass(frozen=True)
class Person:
    """Emoji of a woman and a man who differ in nothing else, each in five tones.

    Attributes:
        name: of the woman without her gender, such as "firefighter".
        scene: portrait or action. woman, man: entries of emoji.json.
    """

    name: str
    scene: str
    woman: dict[str, Any]
    man: dict[str, Any]


def people(emoji: Sequence[dict[str, Any]]) -> list[Person]:
    """Everyone who is in ``emoji`` as a woman and as a man in five tones, in Unicode's order."""
    single = {one["unified"]: one for one in emoji if set(one.get("skin_variations", ())) == set(TONES)}
    pairs = dict(PAIRS)
    for code in single:
        if code.endswith(FACING_RIGHT) or code.startswith(BLOND):
            continue
        if code.startswith("1F469"):
            pairs[code] = code.replace("1F469", "1F468")
        elif "2640" in code:
            pairs[code] = code.replace("2640", "2642")
    ordered = sorted(pairs.items(), key=lambda pair: int(single[pair[0]]["sort_order"]))
    return [_person(single[woman], single[man]) for woman, man in ordered]


def _person(woman: dict[str, Any], man: dict[str, Any]) -> Person:
    name = woman["name"].lower()
    if (common := NAMES.get(name)) is None:
        common = " ".join(word for word in name.replace(":", "").split() if word != "woman")
    scene = {**dict.fromkeys(PORTRAIT, "portrait"), **dict.fromkeys(ACTION, "action")}[woman["subcategory"]]
    return Person(common, scene, woman, man)


def sheet(package: Package, archive: tarfile.TarFile, everyone: Sequence[Person]) -> Pixels:
    """uint8 [P * SIZE, 10 * SIZE, 4], RGBA: a row for each person."""
    rows = []
    for person in everyone:
        cells: list[Pixels] = []
        for one in (person.woman, person.man):
            tones = [_cell(package, archive, one["skin_variations"][tone]["unified"]) for tone in TONES]
            if package.disordered and _brightness(tones)[1] < _brightness(tones)[2]:
                tones[1], tones[2] = tones[2], tones[1]
            _require_order(_brightness(tones), f"{package.file}: {one['name']}")
            cells += tones
        rows.append(np.concatenate(cells, axis=1))
    return np.concatenate(rows)


def _cell(package: Package, archive: tarfile.TarFile, code: str) -> Pixels:
    """uint8 [SIZE, SIZE, 4], each channel at one of :data:`LEVELS` values, black where it is transparent."""
    file = archive.extractfile(package.image.format(code.lower()))
    assert file is not None  # extractfile raises a KeyError for a name that is not there
    image = Image.open(io.BytesIO(file.read())).convert("RGBA").convert("RGBa")  # averages must not mix hidden colours
    image = image.resize((SIZE, SIZE), Image.Resampling.BOX).convert("RGBA")
    step = 255 / (LEVELS - 1)
    cell = np.rint(np.rint(np.asarray(image) / step) * step).astype(np.uint8)
    cell[cell[..., 3] == 0] = 0
    return cell


def _brightness(tones: Sequence[Pixels]) -> list[float]:
    """Mean luma of each tone, over the opaque pixels that differ between tones: skin and hair."""
    stack = np.stack(tones).astype(np.float64)
    differs = np.ptp(stack[..., :3], axis=0).max(axis=-1) > 20
    mask = differs & (stack[..., 3].min(axis=0) > 200)
    luma = stack[..., :3] @ (0.299, 0.587, 0.114)
    return [float(one[mask].mean()) for one in luma]


def _require_order(brightness: Sequence[float], what: str) -> None:
    """The lightest skin may have black hair, so the first tone is only compared with the last two."""
    first, second, third, fourth, fifth = brightness
    if not (second > third > fourth > fifth and first > fourth):
        raise ValueError(f"{what}: tones are not in order from light to dark: {brightness}")


def _open(folder: Path, package: Package) -> tarfile.TarFile:
    data = (folder / package.file).read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != package.sha256:
        raise ValueError(f"{folder / package.file}: SHA-256 is {found}, expected {package.sha256}")
    return tarfile.open(fileobj=io.BytesIO(data))


def make(packages: Path, to: Path) -> None:
    """Writes a sheet for each style, and the table of people."""
    with _open(packages, PACKAGES["noto"]) as archive:
        names = archive.extractfile("package/emoji.json")
        assert names is not None
        everyone = people(json.load(names))
    to.mkdir(parents=True, exist_ok=True)
    for style, package in PACKAGES.items():
        with _open(packages, package) as archive, replace_file(to / f"{style}.webp") as temporary:
            pixels = sheet(package, archive, everyone)
            Image.fromarray(pixels).save(temporary, "webp", lossless=True, quality=100, method=6)
    write_text(to / PEOPLE, "".join(_lines(everyone)))


def _lines(everyone: Sequence[Person]) -> Iterator[str]:
    """A table of name, scene and code points of the woman and the man without tone."""
    yield "person\tscene\twoman\tman\n"
    for one in everyone:
        yield f"{one.name}\t{one.scene}\t{one.woman['unified']}\t{one.man['unified']}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, help="folder of the three .tgz files")
    parser.add_argument("--to", type=Path, required=True)
    arguments = parser.parse_args()
    make(arguments.packages, arguments.to)


if __name__ == "__main__":
    main()
