"""Many images in a file: the same splits, pixels and runs as from single files."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from aimfair.base.errors import AimfairError, ConfigError
from aimfair.data import webdataset
from aimfair.data.load import list_images, load_splits
from aimfair.data.settings import DataSettings
from tests.data.conftest import Warnings, save_image

SPLITS = ("train",) * 16 + ("val",) * 4 + ("test",) * 4
ROWS = [
    {"name": f"{number:04d}", "split": split, "smile": ("no", "yes")[number % 2], "sex": ("f", "m")[number // 2 % 2]}
    for number, split in enumerate(SPLITS)
]
LABELS = {"target": "smile", "protected": "sex", "image_size": 8, "majority": [1, 0]}


def encoded(folder: Path, number: int) -> bytes:
    save_image(folder / "scratch.png", number)
    return (folder / "scratch.png").read_bytes()


def write_tar(path: Path, members: Mapping[str, bytes | str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def write(kind: str, root: Path, scratch: Path, rows: list[dict[str, str]] = ROWS, cut_off: str | None = None) -> None:
    """
    Args:
        cut_off: name of the row of an image that is.
    """
    for start in range(0, len(rows), 5):
        some = rows[start : start + 5]
        images = [encoded(scratch, int(row["name"]))[: 200 if row["name"] == cut_off else None] for row in some]
        shard = root / f"part-{start:03d}"
        if kind == "webdataset":
            write_tar(
                shard.with_suffix(".tar"),
                {
                    name: content
                    for row, image in zip(some, images, strict=True)
                    for name, content in (
                        (f"{row['name']}.png", image),
                        (f"{row['name']}.json", json.dumps({"sex": row["sex"], "split": row["split"]})),
                        (f"{row['name']}.smile", f"{row['smile']}\n"),
                    )
                },
            )
        else:
            root.mkdir(parents=True, exist_ok=True)
            columns: dict[str, list[Any]] = {key: [row[key] for row in some] for key in ("split", "smile", "sex")}
            columns["image"] = [{"bytes": image, "path": None} for image in images]
            pyarrow.parquet.write_table(pyarrow.table(columns), shard.with_suffix(".parquet"), row_group_size=2)


@pytest.fixture(params=["webdataset", "parquet"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def settings(kind: str, root: Path, **changes: Any) -> DataSettings:
    return DataSettings.model_validate({"kind": kind, "root": root, **LABELS, **changes})


def as_table(root: Path) -> DataSettings:
    """The same images as files with a table."""
    root.mkdir()
    lines = ["file,split,smile,sex"]
    for row in ROWS:
        save_image(root / f"{row['name']}.png", int(row["name"]))
        lines.append(f"{row['name']}.png,{row['split']},{row['smile']},{row['sex']}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return settings("table", root)


@pytest.mark.parametrize("keep_decoded", [True, False])
@pytest.mark.parametrize("split_column", ["split", None])
def test_the_splits_and_pixels_of_single_files(
    tmp_path: Path, kind: str, split_column: str | None, keep_decoded: bool
) -> None:
    table = as_table(tmp_path / "files").model_copy(update={"split_column": split_column})
    write(kind, tmp_path / "shards", tmp_path)
    shares = {"validation_share": 0.25, "test_share": 0.25}
    files = load_splits(table.model_copy(update=shares))
    shards = load_splits(
        settings(kind, tmp_path / "shards", split_column=split_column, keep_decoded=keep_decoded, **shares)
    )
    for name, part in files.parts.items():
        other = shards.parts[name]
        numbers = np.random.default_rng(0).permutation(len(part))
        np.testing.assert_array_equal(other.images[numbers], part.images[numbers])
        np.testing.assert_array_equal(other.images[0], part.images[0])
        np.testing.assert_array_equal(np.asarray(other.images), part.images)
        assert other.target.tolist() == part.target.tolist()
        assert other.protected.tolist() == part.protected.tolist()


def test_the_index_of_tar_files_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("webdataset", tmp_path / "shards", tmp_path)
    first = list_images(settings("webdataset", tmp_path / "shards"))
    write_tar(tmp_path / "shards" / "more.tar", {"x.png": encoded(tmp_path, 99), "x.json": '{"sex": "f"}'})
    through: list[str] = []
    original = webdataset._read_through
    monkeypatch.setattr(
        webdataset, "_read_through", lambda path, *rest: through.append(path.name) or original(path, *rest)
    )
    second = list_images(settings("webdataset", tmp_path / "shards"))
    assert through == ["more.tar"], "only files that are new or changed are read again"
    assert second.files == first.files
    assert [tuple(one) for one in second.rejected] == [
        ("more.tar/x.png", "found split '', expected one of train, val, test")
    ]


def test_shards_of_each_split(tmp_path: Path, kind: str) -> None:
    suffix = {"webdataset": "tar", "parquet": "parquet"}[kind]
    for split in ("train", "test"):
        rows = [row for row in ROWS if row["split"] == split]
        write(kind, tmp_path / "shards" / split, tmp_path, rows)
    patterns = {"train": f"train/*.{suffix}", "test": f"test/*.{suffix}"}
    splits = load_splits(settings(kind, tmp_path / "shards", shards=patterns, validation_share=0.25))
    assert [len(part) for part in splits.parts.values()] == [12, 4, 4]
    assert all(name.startswith("test/part-") for name in splits.test.ids)

    with pytest.raises(ConfigError, match=rf"^data.shards.val: 'v\*.{suffix}' matches no file in "):
        list_images(settings(kind, tmp_path / "shards", shards=patterns | {"val": f"v*.{suffix}"}))
    with pytest.raises(ConfigError, match=rf"^data.shards.val: train/part-000.{suffix} also belongs to another split"):
        list_images(settings(kind, tmp_path / "shards", shards=patterns | {"val": f"train/*.{suffix}"}))


@pytest.mark.parametrize("keep_decoded", [True, False])
def test_images_that_cannot_be_decoded_are_left_out_by_name(
    tmp_path: Path, kind: str, keep_decoded: bool, log: Warnings
) -> None:
    write(kind, tmp_path / "shards", tmp_path, cut_off="0001")
    loaded = load_splits(settings(kind, tmp_path / "shards", keep_decoded=keep_decoded, max_bad_share=0.5), log=log)
    name = {"webdataset": "part-000.tar/0001.png", "parquet": "part-000.parquet/000000001"}[kind]
    assert name not in loaded.train.ids
    assert len(loaded.train) == 15
    assert [line for line in log.messages if name in line and "cannot be decoded" in line]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"a.png": b"", "a.jpg": b"", "a.json": "{}"}, "has 2 images among .png, .jpg, .json; name one in data.image"),
        ({"a.json": "{}", "a.txt": "x"}, "has 0 images among .json, .txt; expected one"),
        ({"a.png": b"", "a.json": "{"}, "its .json cannot be read: Expecting property name"),
        ({"a.png": b"", "a.json": "[1]"}, "its .json is list, expected an object"),
        ({"a.png": b"", "a.json": '{"sex": ["f"]}'}, "'sex' is list, expected a string or a number"),
        ({"a.png": b"", "a.json": '{"sex": "f"}', "a.sex": "m"}, "'sex' is a field of its .json and a member"),
        ({"a.png": b"", "a.sex": b"\xff"}, "'a.sex' is not UTF-8"),
        ({"a.png": b"", "a.json": '{"sex": "f", "split": "train"}'}, "'smile' is '', expected a value in every row"),
        ({"a.png": b"", "b.png": b"", "a.sex": "m"}, "its key occurs before: members of a sample must follow each"),
        ({"a.png": b"", "a.sex": "x" * (2**20 + 1)}, "'a.sex' has 1,048,577 bytes, expected at most 1,048,576"),
    ],
)
def test_a_sample_that_cannot_be_used_is_left_out_and_counted(
    tmp_path: Path, members: dict[str, bytes | str], reason: str
) -> None:
    write("webdataset", tmp_path / "shards", tmp_path)
    write_tar(tmp_path / "shards" / "x.tar", members)
    catalogue = list_images(settings("webdataset", tmp_path / "shards", max_bad_share=0.5))
    assert len(catalogue.files) == len(ROWS)
    assert any(one.name.startswith("x.tar/a") and one.reason.startswith(reason) for one in catalogue.rejected)


def test_one_of_several_images_by_its_extension(tmp_path: Path) -> None:
    for number, (split, sex) in enumerate([("train", "f"), ("train", "m"), ("val", "f"), ("test", "f")] * 2):
        fields = json.dumps({"split": split, "sex": sex, "smile": number // 4})
        members = {"input.png": encoded(tmp_path, number), "mask.png": encoded(tmp_path, 99), "json": fields}
        write_tar(tmp_path / "shards" / f"{number}.tar", {f"sub.x/k.{end}": one for end, one in members.items()})
    with pytest.raises(AimfairError, match=r"has 2 images among .input.png, .mask.png, .json; name one in"):
        load_splits(settings("webdataset", tmp_path / "shards"))
    splits = load_splits(settings("webdataset", tmp_path / "shards", image_column="input.png"))
    assert splits.train.ids == tuple(f"{number}.tar/sub.x/k.input.png" for number in (0, 1, 4, 5))


def test_damaged_files_are_named(tmp_path: Path, kind: str) -> None:
    write(kind, tmp_path / "shards", tmp_path)
    shard = sorted((tmp_path / "shards").iterdir())[1]
    data = shard.read_bytes()
    what = {"webdataset": "an uncompressed tar file: .*; copy it again", "parquet": "Parquet: "}[kind]
    for damaged in (data[: len(data) // 3], data[:1024] + b"x" * 512 + data[1536:], b"\x1f\x8b" + data):
        if kind == "parquet" and damaged.endswith(b"PAR1"):
            continue
        shard.write_bytes(damaged)
        with pytest.raises(AimfairError, match=f"^{shard}: cannot be read as {what}"):
            list_images(settings(kind, tmp_path / "shards"))


def test_a_column_that_no_sample_has(tmp_path: Path, kind: str) -> None:
    write(kind, tmp_path / "shards", tmp_path)
    with pytest.raises(
        ConfigError, match=r"^data.protected: found 'sexe', which .* does not have; did you mean 'sex'\?$"
    ):
        list_images(settings(kind, tmp_path / "shards", protected="sexe"))
    if kind == "parquet":
        with pytest.raises(ConfigError, match=r"^data.image_column: found 'img', which .*/part-000.parquet does not"):
            list_images(settings(kind, tmp_path / "shards", image_column="img"))


def test_no_shards(tmp_path: Path, kind: str) -> None:
    with pytest.raises(AimfairError, match=r"found no file that ends in .(tar|parquet), as data.kind (web|par)"):
        list_images(settings(kind, tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shards": {"train": "../*.tar"}}, r"found '\.\./\*\.tar', expected a pattern in data.root that ends in .tar"),
        ({"shards": {"train": "*"}}, r"found '\*', expected a pattern"),
        ({"shards": {}}, "found no split, expected a pattern for each"),
        ({"kind": "table", "image_column": "jpg"}, "found 'jpg'; table has no shards, remove it"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**{"kind": "webdataset", "root": tmp_path} | changes)
