"""Images in tar files: the same job, whatever is interrupted, damaged, shared or imported."""

import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import Interrupted
from aimfair.base.ranks import ALONE, Ranks
from aimfair.data.decode import ImageError, content_digest
from aimfair.data.load import list_images
from aimfair.data.settings import DataSettings
from aimfair.generation import tar_store
from aimfair.generation.imported import choose, copy_images
from aimfair.generation.job import Job, make_range
from aimfair.generation.manifest import DIGITS, ImageRecord, Manifest, Outcome
from aimfair.generation.provenance import Provenance
from aimfair.generation.settings import GenerateSettings
from aimfair.generation.source import read_source
from aimfair.generation.store import check_digests
from aimfair.generation.tar_store import TarStore
from tests.base.together import in_threads
from tests.generation.crash_points import contents
from tests.generation.samples import SIZE, NoiseSampler, small_plan
from tests.generation.test_comparisons import often_alike
from tests.generation.test_job import Stop

PLAN = small_plan()


def settings(**changes: Any) -> GenerateSettings:
    values = {"batch_size": 4, "max_rejections": 3, "storage": "webdataset", "images_per_shard": 10, **changes}
    return GenerateSettings.model_validate(values)


def make(folder: Path, *, after: int | None = None, ranks: Ranks = ALONE, finished: Any = None, **changes: Any) -> Job:
    """``after``: stops after so many batches."""
    changes = {"filters": {"near_duplicates": 4}, **changes}
    job = Job(folder, PLAN, Provenance({}), settings(**changes), SIZE, ranks=ranks, finished=finished)
    if after is None:
        job.run(lambda: NoiseSampler(change=often_alike))
    else:
        with pytest.raises(Interrupted):
            job.run(lambda: NoiseSampler(change=often_alike), interrupt=Stop(after))
    return job


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tars") / "whole"
    make(folder)
    return folder


def test_the_images_of_single_files_with_their_labels_in_tar_files(whole: Path, tmp_path: Path) -> None:
    make(tmp_path / "files", storage="files")
    shutil.copytree(whole, tmp_path / "tars")  # reading keeps decoded images beside it
    single, packed = Manifest(tmp_path / "files"), Manifest(tmp_path / "tars")
    assert sorted(contents(whole)) == [*(f"images/0000{n}.tar" for n in range(4)), "job.json", "manifest.jsonl"]
    found: dict[str, bytes] = {}
    for path in sorted((whole / "images").iterdir()):
        found |= {f"{path.name}/{name}": data for name, data in members(path).items()}
    assert len(found) == 2 * len(PLAN)
    assert "near_duplicate" in {reason for record in packed.records.values() for reason in record.rejected}
    for number, record in packed.records.items():
        name = Path(single.records[number].file).name
        assert record.file == f"images/{number // 10:05d}.tar/{name}"
        assert record.model_copy(update={"file": f"images/{name}", "place": None}) == single.records[number]
        data = (tmp_path / "files" / "images" / name).read_bytes()
        assert found[record.file.removeprefix("images/")] == data == packed.source.open(record.file).read()
        labels = json.loads(found[str(Path(record.file).with_suffix(".json")).removeprefix("images/")])
        assert labels == {
            name: getattr(record, name) for name in ("image", "y", "a", "prompt", "text", "replica", "seed", "sets")
        }
    for which in ("balanced", "biased"):
        ours, theirs = packed.load(which, SIZE, "crop"), single.load(which, SIZE, "crop")  # type: ignore[arg-type]
        assert np.array_equal(ours.images, theirs.images)
        assert np.array_equal(ours.target, theirs.target)


@pytest.mark.parametrize("after", [0, 1, 5, 8, 9])
def test_interrupted_and_continued(whole: Path, tmp_path: Path, after: int) -> None:
    make(tmp_path, after=after)
    make(tmp_path)
    assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize("size", [2, 3])
def test_the_number_of_processes_changes_nothing(whole: Path, tmp_path: Path, size: int) -> None:
    assert in_threads(lambda here: make(tmp_path, ranks=here) and None, size) == [None] * size
    assert contents(tmp_path) == contents(whole)


def test_ranges_in_other_processes(whole: Path, tmp_path: Path) -> None:
    chosen = settings(filters={"near_duplicates": 4})
    job = Job(tmp_path, PLAN, Provenance({}), chosen, SIZE)

    def elsewhere(attempt: int, batches: Any, missing: Any) -> None:
        for shard, part in enumerate((batches[:2], batches[2:])):
            for _ in range(2):  # the second finds all of it
                make_range(
                    tmp_path, chosen, SIZE, shard, attempt, part, missing,
                    lambda: (NoiseSampler(change=often_alike), None),
                )  # fmt: skip

    job.run(NoiseSampler, elsewhere=elsewhere)
    assert contents(tmp_path) == contents(whole)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def flip(path: Path) -> None:
    """One image."""
    with tarfile.open(path) as tar:
        member = tar.getmembers()[4]
    data = bytearray(path.read_bytes())
    data[member.offset_data + member.size // 2] ^= 0xFF
    path.write_bytes(data)


def scramble(path: Path) -> None:
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        begin = tar.getmembers()[6].offset
    data[begin : begin + 512] = bytes(range(256)) * 2
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut_short, flip, scramble, Path.unlink])
def test_damaged_shards_are_made_again(whole: Path, tmp_path: Path, damage: Any) -> None:
    make(tmp_path)
    damage(tmp_path / "images" / "00001.tar")
    job = Job(tmp_path, PLAN, Provenance({}), settings(filters={"near_duplicates": 4}), SIZE)
    assert len(PLAN) - 10 <= job.done < len(PLAN)
    make(tmp_path, after=0)
    make(tmp_path)
    assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize("damage", [cut_short, flip])
def test_damaged_pieces_are_made_again(whole: Path, tmp_path: Path, damage: Any) -> None:
    make(tmp_path, after=5)
    (piece,) = (tmp_path / "shards").glob("*.tar")
    damage(piece)
    with (tmp_path / "shards" / "0-00007.tar").open("wb") as file:
        file.write(b"half a header")
    make(tmp_path)
    assert contents(tmp_path) == contents(whole)


def test_killed_while_shards_are_written(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that have been copied are gone by then."""
    original = TarStore._write_shard
    made: list[Path] = []

    def dies(self: TarStore, shard: Path, *others: Any) -> Any:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(shard)
        return original(self, shard, *others)

    with monkeypatch.context() as patch:
        patch.setattr(TarStore, "_write_shard", dies)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path)
    assert not (tmp_path / "manifest.jsonl").exists()
    times = {path: path.stat().st_mtime_ns for path in made}
    job = Job(tmp_path, PLAN, Provenance({}), settings(filters={"near_duplicates": 4}), SIZE)
    assert job.done == len(PLAN)
    job.run(lambda: pytest.fail("no model is needed"))
    assert contents(tmp_path) == contents(whole)
    assert {path: path.stat().st_mtime_ns for path in made} == times  # not written twice


def test_a_lost_manifest_is_made_again_from_the_shards(whole: Path, tmp_path: Path) -> None:
    summary = make(tmp_path, filters={}).summary
    before = contents(tmp_path)
    assert summary.rejected  # in some groups; the others are recovered
    (tmp_path / "manifest.jsonl").unlink()
    certain = {(group.y, group.a) for group in summary.groups if not group.rejected}
    job = Job(tmp_path, PLAN, Provenance({}), settings(), SIZE, finished=summary)
    assert job.done == sum(planned.group in certain for planned in PLAN)
    job.run(lambda: NoiseSampler(change=often_alike))
    assert contents(tmp_path) == before


# -- what a million would fill or repeat -------------------------------------------------------------------------------


def test_records_are_in_memory_one_shard_at_a_time(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "set")
    records = list(Manifest(whole).records.values())
    drawn: list[int] = []

    def counted() -> Iterator[ImageRecord]:
        for record in records:
            drawn.append(record.image)
            name = Path(record.file).name
            yield record.model_copy(update={"file": f"images/{name}", "place": None})

    placed = TarStore(tmp_path / "set", 10, 0).finish([Path(one.file).name for one in records], counted())
    assert next(placed) == records[0]
    assert len(drawn) == 11
    assert list(placed) == records[1:]
    assert contents(tmp_path / "set") == contents(whole)


def test_tar_files_are_looked_through_once_at_the_start_and_once_at_the_end(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, after=5)
    seen: list[str] = []
    original = tar_store._images
    monkeypatch.setattr(tar_store, "_images", lambda path: [*original(path), seen.append(path.name)][:-1])
    job = Job(tmp_path, PLAN, Provenance({}), settings(filters={"near_duplicates": 4}), SIZE)
    assert seen == ["0-00000.tar"]
    job.run(lambda: NoiseSampler(change=often_alike))
    assert len(seen) > 2
    assert len(set(seen[1:])) == len(seen[1:])
    assert contents(tmp_path) == contents(whole)


def test_checks_of_images_are_planned_as_they_are_done() -> None:
    drawn: list[str] = []

    def names() -> Iterator[str]:
        for number in range(5000):
            drawn.append(str(number))
            yield drawn[-1]

    def read(name: str) -> Image.Image:
        if name == "1":
            return Image.new("RGB", (1, 1))
        raise ImageError(Path(name), "no image")

    good = content_digest(Image.new("RGB", (1, 1)))[:DIGITS]
    found = check_digests(names(), read, key=lambda name: f"{name}-{good}.png")
    assert [next(found), next(found)] == [("0", False), ("1", True)]
    assert len(drawn) < 2000
    assert len([*found]) == 4998


def test_lines_share_what_is_the_same_for_all() -> None:
    one, other = (Outcome(image=image, attempt=0, digest="0" * DIGITS) for image in range(2))
    assert one.model_fields_set is other.model_fields_set
    assert one.model_copy(update={"image": 1}) == other
    assert Outcome.model_validate_json(one.model_dump_json()) == one


def test_a_full_disk_leaves_no_part_of_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TarStore(tmp_path, 10, 0)

    def half(file: Any, data: memoryview) -> None:
        file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    name = "000001-0123456789ab.png"
    store.put(name, b"first")
    with monkeypatch.context() as patch:
        patch.setattr("aimfair.generation.tar_store._write", half)
        with pytest.raises(OSError, match=r"No space left on device: '.*0-00000.tar'"):
            store.put("000002-0123456789ab.png", bytes(2000))
    store.put("000003-0123456789ab.png", b"third")
    store.close()
    assert store.names() == [name, "000003-0123456789ab.png"]


def test_other_storage_is_another_set(whole: Path, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(AimfairError, match="of another job: images_per_shard, storage differ"):
        make(tmp_path, storage="files")
    with pytest.raises(AimfairError, match="of another job: images_per_shard differs"):
        make(tmp_path, images_per_shard=11)


@pytest.mark.parametrize("storage", ["files", "webdataset"])
def test_sets_are_imported_from_tar_files(whole: Path, tmp_path: Path, storage: str) -> None:
    small = settings(storage=storage, images_per_shard=4, balanced_per_group=2, biased_total=6)
    data = DataSettings(minority_ratio=0.5)
    source = read_source(whole, (2, 2), data)
    assert len(source.images) == len(PLAN)
    choice = choose(source, small, data, 2)
    provenance = Provenance.imported(source.digest, small, data, 2)
    copy_images(choice, tmp_path / "made", provenance, small, overwrite=False)
    before = contents(tmp_path / "made")
    copy_images(choice, tmp_path / "made", provenance, small, overwrite=False)
    assert contents(tmp_path / "made") == before
    made, origin = Manifest(tmp_path / "made"), Manifest(whole)
    by_digest = {record.digest: record for record in origin.records.values()}
    assert len(made.records) == len(choice.images)
    for record in made.records.values():
        image = made.source.read_rgb(record.file, SIZE**2)
        assert content_digest(image).startswith(record.digest)
        assert by_digest[record.digest].group == record.group
        assert (record.place is None) == (storage == "files")


@pytest.mark.parametrize("damage", [cut_short, flip, Path.unlink, None])
def test_an_import_goes_on(whole: Path, tmp_path: Path, damage: Any) -> None:
    """After an interruption (None), or with one damaged shard among several."""
    small = settings(images_per_shard=4, balanced_per_group=2, biased_total=6)
    data = DataSettings(minority_ratio=0.5)
    source = read_source(whole, (2, 2), data)
    choice = choose(source, small, data, 2)
    provenance = Provenance.imported(source.digest, small, data, 2)

    def copy(to: Path, images: Any = choice.images, **options: Any) -> None:
        copy_images(replace(choice, images=images), to, provenance, small, overwrite=False, **options)

    copy(tmp_path / "made")
    before = contents(tmp_path / "made")
    again = tmp_path / "again"
    if damage is None:
        with pytest.raises(Interrupted):
            copy(again, choice.images[:6], interrupt=Stop(0))
    else:
        copy(again)
        damage(again / "images" / "00001.tar")
    copy(again)
    assert contents(again) == before


def test_the_shards_are_a_data_set_of_their_own(whole: Path) -> None:
    data = DataSettings(
        kind="webdataset", root=whole / "images", target="y", protected="a", split_column=None, image_size=SIZE,
        majority=[0, 1], minority_ratio=0.5,
    )  # fmt: skip
    catalogue = list_images(data)
    records = list(Manifest(whole).records.values())
    assert catalogue.files == tuple(record.file.removeprefix("images/") for record in records)
    assert catalogue.labels.target.values.tolist() == [record.y for record in records]
    assert catalogue.labels.protected.values.tolist() == [record.a for record in records]
