"""Settings of the real images and their augmentation."""

import math
from pathlib import PurePosixPath
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from aimfair.base.settings import FolderOrUrl, Problem, Settings

UTKFACE = {
    "gender": ("male", "female"),
    "white": ("not white", "white"),
    "race": ("white", "black", "Asian", "Indian", "other"),
    "age": ("under 20", "20 to 39", "40 to 59", "60 and over"),
}
"""Attributes in UTKFace's file names -> names of their values."""

EMOJI = {
    "gender": ("woman", "man"),
    "tone": ("light", "dark"),
    "fitzpatrick": ("type 1-2", "type 3", "type 4", "type 5", "type 6"),
    "scene": ("portrait", "action"),
}
"""Attributes of people emoji -> names of their values. Type 4 is neither light nor dark."""

DRAWN = ("digits", "emoji")
"""Kinds whose images are drawn from what aimfair ships: they have no files."""

_NAMED = {"utkface": UTKFACE, "emoji": EMOJI}
"""Kinds whose attributes are known without their files."""

Style = Literal["noto", "fluent", "twemoji"]
"""Of emoji: Google's Noto Emoji, Microsoft's Fluent Emoji in 3D, Twitter's Twemoji."""

SHARDS = {"webdataset": ".tar", "parquet": ".parquet"}
"""Kinds with many images in a file -> its suffix."""

_COLUMNS = ("table", "imagefolder", *SHARDS)

SplitName = Literal["train", "val", "test"]

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
"""Suffixes of tables of labels."""


class DataSettings(Settings):
    """The real images."""

    kind: Literal["digits", "emoji", "table", "imagefolder", "webdataset", "parquet", "celeba", "utkface"] = Field(
        "digits", description="layout of the data set"
    )
    root: FolderOrUrl | None = Field(
        None, description="folder of the data set, or its URL, such as s3://bucket/folder; digits and emoji need none"
    )
    style: Style = Field("noto", description="emoji: the drawing style")
    drawings: int = Field(
        4,
        ge=1,
        le=100,
        description="emoji: images of each emoji, which differ in place, size, angle, mirroring and background",
    )
    table: str = Field("labels.csv", description="table: the file of labels in root, .csv, .tsv, .jsonl or .parquet")
    file_column: str = Field("file", description="table: the column of paths")
    split_column: str | None = Field(
        "split",
        description="table, webdataset, parquet: the column of train, val and test; null: rows are split at random",
    )
    shards: dict[SplitName, str] | None = Field(
        None,
        description="webdataset, parquet: split -> pattern of its files in root, such as train/*.tar; null: all files"
        " that end in .tar or .parquet, split by split_column",
    )
    image_column: str | None = Field(
        None,
        description="webdataset: the extension of the image, such as input.jpg, null: the only image of a sample;"
        " parquet: the column of encoded images, null: image",
    )
    group_column: str | None = Field(
        None,
        description="table, imagefolder, webdataset, parquet: the column of clusters, such as patients: images of one"
        " stay in one split and are resampled together by the bootstrap; null: images are independent",
    )
    target: str = Field(
        "at_least_five",
        description="the class to predict: digits: at_least_five or digit; table, parquet: a column; imagefolder:"
        " label, the folder's name, or a column; webdataset: a field of .json, or the extension of a text; celeba: an"
        " attribute; utkface: gender, white, race or age; emoji: gender, tone, fitzpatrick or scene",
    )
    protected: str = Field("ink", description="protected attribute: digits: ink; others: as target")
    intersect_with: list[str] = Field(
        [], description="further attributes; every combination with protected is then a protected value"
    )
    audit: list[str] = Field([], description="further attributes for groups in evaluate; nothing else reads them")
    image_size: int = Field(32, ge=8, le=2048, description="pixels along each side, as the model sees them")
    minority_ratio: float = Field(
        1 / 9, gt=0, le=1, description="size of a minority group over that of a majority group in biased sets"
    )
    majority: list[int] = Field(
        [1, 0], description="for each target class, the number of the protected value that dominates it in biased sets"
    )
    train_images: int | None = Field(
        None,
        ge=1,
        description="biased training images; null: all that minority_ratio allows, of a table all its rows",
    )
    validation_share: float = Field(
        0.15, gt=0, lt=0.5, description="share of each group, if the data set has no splits; emoji: of the people"
    )
    test_share: float = Field(0.15, gt=0, lt=0.5, description="as validation_share")
    fit: Literal["crop", "stretch"] = Field(
        "crop", description="how images become square: center crop, or stretched as in AIM-Fair"
    )
    seed: int = Field(0, ge=0, description="of splits and biased subsets")
    max_pixels: int = Field(50_000_000, ge=1, description="larger images are refused before decoding")
    missing: list[str] = Field(
        ["-", "na", "n/a", "#n/a", "nan", "null", "<na>", "None"],
        description="table, imagefolder, webdataset, parquet: what stands for a missing value, besides an empty"
        " cell; an entry in lower case matches any case, another only itself",
    )
    keep_decoded: bool = Field(
        True,
        description="decode each image once and keep its pixels on disk; false: decode it again for every batch",
    )
    max_bad_share: float = Field(
        0.01, ge=0, le=1, description="share of unreadable images or rows above which the data set is refused"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind not in DRAWN and self.root is None:
            raise Problem(("root",), f"missing; {self.kind} needs the folder of the data set")
        self._check_roles()
        if self.group_column is not None and self.kind not in _COLUMNS:
            raise Problem(("group_column",), f"found {self.group_column!r}; {self.kind} has no columns, remove it")
        self._check_shards()
        if self.kind == "table":
            self._check_table()
        elif self.kind == "digits":
            self._check_digits()
        elif self.kind in _NAMED:
            for name, key in self.roles().items():
                if name not in _NAMED[self.kind]:
                    expected = ", ".join(_NAMED[self.kind])
                    raise Problem(
                        (key.removeprefix("data."),), f"found {name!r}, expected one of {expected} for {self.kind}"
                    )
        return self

    def _check_roles(self) -> None:
        seen: dict[str, str] = {}
        for key, name in self._roles():
            if name in seen:
                raise Problem((key,), f"found {name!r}, which is data.{seen[name]}, expected another attribute")
            seen[name] = key

    def _check_table(self) -> None:
        path = PurePosixPath(self.table)
        if path.suffix.lower() not in TABLES or path.is_absolute() or ".." in path.parts:
            raise Problem(
                ("table",), f"found {self.table!r}, expected a file in data.root that ends in {', '.join(TABLES)}"
            )

    def _check_shards(self) -> None:
        for key, value in (("shards", self.shards), ("image_column", self.image_column)):
            if value is not None and self.kind not in SHARDS:
                raise Problem((key,), f"found {value!r}; {self.kind} has no shards, remove it")
        for split, pattern in (self.shards or {}).items():
            suffix, path = SHARDS[self.kind], PurePosixPath(pattern)
            if path.suffix.lower() != suffix or path.is_absolute() or ".." in path.parts:
                raise Problem(
                    ("shards", split), f"found {pattern!r}, expected a pattern in data.root that ends in {suffix}"
                )
        if self.shards == {}:
            raise Problem(("shards",), "found no split, expected a pattern for each, or null")

    def _check_digits(self) -> None:
        if self.target not in ("at_least_five", "digit"):
            raise Problem(("target",), f"found {self.target!r}, expected 'at_least_five' or 'digit' for digits")
        if self.protected != "ink":
            raise Problem(("protected",), f"found {self.protected!r}, expected 'ink' for digits")
        for key, names in (("intersect_with", self.intersect_with), ("audit", self.audit)):
            if names:
                raise Problem((key,), f"found {names[0]!r}; digits have no attribute but their ink, remove it")

    def _roles(self) -> list[tuple[str, str]]:
        return [
            ("target", self.target),
            ("protected", self.protected),
            *(("intersect_with", name) for name in self.intersect_with),
            *(("audit", name) for name in self.audit),
        ]

    def roles(self) -> dict[str, str]:
        """Attribute -> key that names it, such as "data.audit"; the target first."""
        return {name: f"data.{key}" for key, name in self._roles()}

    @property
    def of_training(self) -> dict[str, Any]:
        """Settings that the training images depend on; ``audit`` can change without training again."""
        return self.model_dump(mode="json", exclude={"audit", "keep_decoded"})

    def group_shape(self) -> tuple[int, int] | None:
        """(Y target classes, A protected values); None if only the table defines them."""
        if self.kind in _COLUMNS:
            return None
        if self.kind == "digits":
            return (10 if self.target == "digit" else 2), 2
        sizes = [2 if self.kind == "celeba" else len(_NAMED[self.kind][name]) for name in self.roles()]
        return sizes[0], math.prod(sizes[1 : 2 + len(self.intersect_with)])


class AugmentSettings(Settings):
    """Data augmentation of training images."""

    shift: int = Field(0, ge=0, description="maximum random shift along each axis, in pixels")
    crop_scale: tuple[float, float] = Field(
        (1.0, 1.0), description="range of the area of a random resized crop, as a share"
    )
    crop_ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="range of its aspect ratio, width over height")
    flip: bool = Field(False, description="flip half of the images left to right")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, (low, high), limit in (("crop_scale", self.crop_scale, 1.0), ("crop_ratio", self.crop_ratio, 100.0)):
            if not 0 < low <= high <= limit:
                raise Problem((name,), f"found [{low}, {high}], expected 0 < least <= greatest <= {limit:g}")
        return self
