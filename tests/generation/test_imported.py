"""Images that were made elsewhere: what is found, chosen and copied, and that the source stays as it is."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from PIL import Image

from aimfair.base.errors import AimfairError, ConfigError
from aimfair.base.interrupt import Interrupted
from aimfair.base.log import Log
from aimfair.base.ranks import Ranks
from aimfair.config import Config
from aimfair.data.decode import decode
from aimfair.data.settings import DataSettings
from aimfair.data.sources import Folder
from aimfair.evaluation.results import Results
from aimfair.generation import imported
from aimfair.generation.job import Job
from aimfair.generation.manifest import ImageRecord, Manifest
from aimfair.generation.provenance import Provenance
from aimfair.generation.settings import GenerateSettings
from aimfair.generation.source import read_source
from aimfair.generation.summary import GenerationSummary
from aimfair.run.directory import Run
from aimfair.stages import generate
from aimfair.stages.pipeline import run_stages
from tests.data.conftest import Warnings, cache_home, save_image  # noqa: F401 - a fixture
from tests.generation.samples import NoiseSampler, prompt_settings, small_plan
from tests.generation.test_shared_job import in_threads
from tests.training.samples import RESNET

SIZE = 32
GROUPS = [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images of each group: PNG, JPEG, WebP, some of them a folder deeper, none of the size of the task."""
    root = tmp_path / "elsewhere"
    for number in range(40):
        y, a = GROUPS[number % 4]
        inner = "more/deep/" if number % 3 == 0 else ""
        save_image(root / f"{y}_{a}/{inner}{number:02}.{('png', 'jpg', 'webp')[number % 3]}", number, (20, 18))
    (root / "README.txt").write_text("not an image")
    (root / "0_0/notes.txt").write_text("not an image")
    (root / "0_0/._02.png").write_text("what some systems leave")
    return root


def config(folder: Path | None, **changes: Any) -> Config:
    """Balanced 5 for each group, biased (1, 2, 2, 1), disjoint: 6, 7, 7 and 6 of the ten are taken."""
    generated = {"folder": folder, "balanced_per_group": 5, "biased_total": 6, **changes.pop("generate", {})}
    return Config.model_validate(
        {
            "device": "cpu",
            "data": {"image_size": SIZE, "minority_ratio": 0.5, **changes.pop("data", {})},
            "prompts": prompt_settings().model_dump(),
            "generate": generated,
            "model": {"config": RESNET},
            "sensitivity": {"batch_size": 2},
            "methods": {"full": {"rule": "all"}},
            "default_method": "full",
            **changes,
        }
    )


def stage(path: Path, settings: Config, *, overwrite: bool = False) -> None:
    with Run.open(path, settings, overwrite=overwrite, quiet=True) as run:
        generate.run(run)


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a run's images but what is derived from them."""
    files = [file for file in path.rglob("*") if file.is_file() and "decoded" not in file.parts]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def pixels(path: Path) -> bytes:
    return decode(path, SIZE, 10**6).tobytes()


def copy_of(settings: Config, to: Path, log: Log | None = None) -> imported.Choice:
    assert settings.generate.folder is not None
    source = read_source(settings.generate.folder, (2, 2), settings.data)
    choice = imported.choose(source, settings.generate, settings.data, 2, log or Warnings())
    provenance = Provenance.imported(source.digest, settings.generate, settings.data, 2)
    imported.copy_images(choice, to, provenance, settings.generate, overwrite=True)
    return choice


# -- what is copied ----------------------------------------------------------------------------------------------------


def test_both_sets_have_the_images_of_their_groups(folder: Path, tmp_path: Path) -> None:
    before = {
        path: (path.stat().st_mtime_ns, data) for path, data in ((folder / n, d) for n, d in contents(folder).items())
    }
    stage(tmp_path / "run", config(folder))
    made = tmp_path / "run/synthetic"
    balanced, biased = (Manifest(made).load(name, SIZE, "crop") for name in ("balanced", "biased"))  # type: ignore[arg-type]
    assert balanced.group_counts(2, 2).tolist() == [[5, 5], [5, 5]]
    assert biased.group_counts(2, 2).tolist() == [[1, 2], [2, 1]]
    assert not set(balanced.ids) & set(biased.ids)
    groups = {pixels(path): path.relative_to(folder).parts[0] for path in folder.rglob("*.*") if path.suffix != ".txt"
              and not path.name.startswith(".")}  # fmt: skip
    for part in (balanced, biased):
        for image, y, a in zip(part.images, part.target, part.protected, strict=True):
            assert groups[image.tobytes()] == f"{y}_{a}"
    originals = set(contents(folder).values())
    copies = {name: data for name, data in contents(made).items() if name.startswith("images/")}
    assert len(copies) == 26
    assert set(copies.values()) <= originals, "bytes are copied as they are"
    assert {Path(name).suffix for name in copies} == {".png", ".jpg", ".webp"}
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before


def test_what_is_not_known_is_empty(folder: Path, tmp_path: Path) -> None:
    copy_of(config(folder), tmp_path / "synthetic")
    records = Manifest(tmp_path / "synthetic").records
    assert list(records) == list(range(26))
    assert {(one.prompt, one.text, one.seed, one.attempt) for one in records.values()} == {("", "", 0, 0)}


def test_the_choice_follows_from_the_seed_alone(folder: Path, tmp_path: Path) -> None:
    first, again, other = (
        [one.file for one, _ in copy_of(config(folder, generate={"seed": seed}), tmp_path / str(place)).images]
        for place, seed in enumerate((0, 0, 1))
    )
    assert first == again
    assert set(first) != set(other)
    assert contents(tmp_path / "0") == contents(tmp_path / "1")


def test_shared_sets(folder: Path, tmp_path: Path) -> None:
    copy_of(config(folder, generate={"disjoint": False, "balanced_per_group": 10, "biased_total": 24}), tmp_path / "x")
    records = Manifest(tmp_path / "x").records.values()
    assert [sum(which in one.sets for one in records) for which in ("balanced", "biased")] == [40, 24]
    assert len(records) == 40


def test_images_of_another_run_keep_their_texts_and_their_prompts_in_turn(tmp_path: Path) -> None:
    """Of 6 prompts with 2 images each, the first 6 images of a group are of 6 prompts."""
    other = tmp_path / "other" / "synthetic"
    other.parent.mkdir()
    job = Job(other, small_plan(12), Provenance({}), GenerateSettings(batch_size=50, max_rejections=0), SIZE)
    job.run(lambda: NoiseSampler(SIZE))
    source = Manifest(other).records
    texts = {record.prompt: (record.text, record.y, record.a) for record in source.values()}
    copy_of(config(other, generate={"balanced_per_group": 6, "biased_total": 12}), tmp_path / "run")
    records = list(Manifest(tmp_path / "run").records.values())
    for group in GROUPS:
        members = [one for one in records if (one.y, one.a) == group]
        assert len({one.prompt for one in members if "balanced" in one.sets}) == 6
        assert all((one.text, one.y, one.a) == texts[one.prompt] for one in members)
    by_pixels = {one.digest: one for one in source.values()}
    assert all(by_pixels[one.digest].seed == one.seed for one in records)


# -- what is left out --------------------------------------------------------------------------------------------------


def test_copies_and_contradictions_are_left_out(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "0_0/04.jpg", folder / "0_0/99.jpg")
    with Image.open(folder / "0_0/08.webp") as image:
        image.save(folder / "1_1/98.png")
    log = Warnings()
    images = copy_of(config(folder), tmp_path / "x", log)
    assert not {"0_0/99.jpg", "0_0/08.webp", "1_1/98.png"} & {one.file for one, _ in images.images}
    first, *_, last = images.summary.groups
    assert (first.made, first.kept, first.rejected) == (11, 6, {"copy": 1, "in two groups": 1, "not needed": 3})
    assert (last.made, last.kept, last.rejected) == (11, 6, {"in two groups": 1, "not needed": 4})
    assert [message.partition(" left out, ")[2] for message in log.messages] == [
        "copies of others: for example '0_0/99.jpg'",
        "images that appear in two groups: for example '0_0/08.webp'",
    ]


def test_unreadable_images_are_left_out_up_to_a_share(folder: Path, tmp_path: Path) -> None:
    (folder / "0_0/04.jpg").write_text("<!DOCTYPE html>")
    os.truncate(folder / "1_1/07.jpg", 100)
    with pytest.raises(AimfairError, match=r"2 of 40 images of .*'0_0/04.jpg': not JPEG.*'1_1/07.jpg': cannot be dec"):
        copy_of(config(folder), tmp_path / "x")
    assert not (tmp_path / "x").exists()
    log = Warnings()
    images = copy_of(config(folder, data={"max_bad_share": 0.05}), tmp_path / "x", log)
    assert [one.rejected.get("unreadable", 0) for one in images.summary.groups] == [1, 0, 0, 1]
    assert log.messages[0].startswith("2 of 40 images of")


def test_the_format_is_told_by_the_content(folder: Path, tmp_path: Path) -> None:
    for path in folder.rglob("*.png"):
        if not path.name.startswith("."):
            path.rename(path.with_suffix(".jpg"))
    copy_of(config(folder), tmp_path / "x")
    for path in (tmp_path / "x/images").iterdir():
        with Image.open(path) as image:
            assert {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}[str(image.format)] == path.suffix


# -- real images among them ------------------------------------------------------------------------------------------


def real_table(root: Path) -> DataSettings:
    """Four images of each group in training, two each in validation and test, numbered from 1000."""
    lines = ["file,split,shape,colour"]
    for number in range(32):
        split = ("train", "train", "val", "test")[number // 4 % 4]
        save_image(root / f"{number}.png", 1000 + number, (20, 18))
        lines.append(f"{number}.png,{split},{number % 4 // 2},{number % 2}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return DataSettings(kind="table", root=root, target="shape", protected="colour", image_size=8, minority_ratio=0.5)


@pytest.mark.parametrize(("number", "part"), [(0, "training"), (8, "validation"), (12, "the test set")])
def test_real_images_are_refused_or_named(folder: Path, tmp_path: Path, number: int, part: str) -> None:
    """Of the test set refused, before anything is copied; others are named."""
    settings = config(folder, data=real_table(tmp_path / "real").model_dump(exclude_unset=True))
    stage(tmp_path / "clean", settings)
    assert "real images" not in (tmp_path / "clean/log.jsonl").read_text()
    with Image.open(tmp_path / f"real/{number}.png") as image:
        image.save(folder / "0_0/new.webp", lossless=True)
    line = f"1 images of {folder} are real images of {part}, for example '0_0/new.webp' is '{number}.png'"
    if part == "the test set":
        with pytest.raises(AimfairError, match=f"^generate.folder: {line}; take them out"):
            stage(tmp_path / "run", settings)
        assert not (tmp_path / "run/synthetic").exists()
    else:
        stage(tmp_path / "run", settings)
        assert line in (tmp_path / "run/log.jsonl").read_text()


def test_other_real_images_are_checked_again(folder: Path, tmp_path: Path) -> None:
    data = real_table(tmp_path / "real").model_dump(exclude_unset=True)
    stage(tmp_path / "run", config(folder, data=data))
    lines = (tmp_path / "real/labels.csv").read_text()
    shutil.copy(folder / "0_0/08.webp", tmp_path / "real/mine.webp")
    (tmp_path / "real/other.csv").write_text(lines + "mine.webp,test,0,0\n")
    with pytest.raises(AimfairError, match=r"'0_0/08.webp' is 'mine.webp'"):
        stage(tmp_path / "run", config(folder, data={**data, "table": "other.csv"}), overwrite=True)


def test_digits_are_real_images_too(folder: Path, tmp_path: Path) -> None:
    from aimfair.data import digits

    Image.fromarray(digits.balanced(DataSettings(minority_ratio=0.5), "test").images[7]).save(folder / "0_0/digit.png")
    with pytest.raises(AimfairError, match=r"real images of the test set, for example '0_0/digit.png' is 'digit \d+'"):
        stage(tmp_path / "run", config(folder))


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_too_few_images_are_refused_with_the_numbers(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, generate={"balanced_per_group": 9})
    expected = (
        r"too few different images that can be read: group \(y=0, a=1\) has 10, 11 are needed; \(y=1, a=0\) has 10, 11"
        r" are needed; add images, or lower generate.balanced_per_group \(9\) or generate.biased_total \(6\); or let"
        r" the two sets share images: generate.disjoint false"
    )
    with pytest.raises(AimfairError, match=expected):
        copy_of(settings, tmp_path / "x")


def test_any_number_of_images_is_compared_before_they_are_chosen(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, generate={"balanced_per_group": 10**6, "biased_total": 10**7, "disjoint": False})
    with pytest.raises(AimfairError, match=r"\(y=0, a=1\) has 10, 3,333,333 are needed"):
        copy_of(settings, tmp_path / "x")
    with pytest.raises(ValueError, match=r"less than or equal to 1000000"):
        config(folder, generate={"balanced_per_group": 10**9})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "1_1").rename(root / "2_0"), r"2_0/.*found group \(y=2, a=0\), expected y below 2"),
        (lambda root: [shutil.rmtree(root / f"{y}_{a}") for y, a in GROUPS], r"has no images, expected them in"),
        (lambda root: shutil.rmtree(root / "1_0"), r"group \(y=1, a=0\) has 0, 7 are needed"),
        (lambda root: (root / "manifest.jsonl").write_text('{"file": "x.png"}\n'), r"manifest.jsonl:1: "),
        (shutil.rmtree, r"generate.folder: found .*elsewhere, which is not a folder, expected one with images"),
    ],
)  # fmt: skip
def test_folders_that_cannot_be_used(folder: Path, tmp_path: Path, change: Any, message: str) -> None:
    change(folder)
    with pytest.raises(AimfairError, match=message):
        stage(tmp_path / "run", config(folder))


def test_a_folder_at_a_url(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    stage(tmp_path / "run", config(f"file://{folder}"))  # type: ignore[arg-type]
    assert len((tmp_path / "run" / "synthetic" / "manifest.jsonl").read_text().splitlines()) == 26


def test_provenance_written_with_the_former_name_of_the_minority_ratio_is_equal(tmp_path: Path) -> None:
    provenance = Provenance.imported("digest", GenerateSettings(), DataSettings(minority_ratio=0.25), 2)
    facts = dict(provenance.facts)
    (tmp_path / "job.json").write_text(json.dumps({"bias": facts.pop("minority_ratio"), **facts}))
    assert "minority_ratio" not in (tmp_path / "job.json").read_text()
    assert Provenance.read(tmp_path) == provenance


def test_a_manifest_never_leads_out_of_its_folder() -> None:
    record = {"image": 0, "y": 0, "a": 0, "prompt": "", "text": "", "replica": 0, "seed": 0, "sets": [], "attempt": 0,
              "rejected": []}  # fmt: skip
    with pytest.raises(ValueError, match="file"):
        ImageRecord.model_validate({**record, "file": "images/../../x.png"})


def test_a_manifest_that_lists_a_file_twice_is_refused(tmp_path: Path) -> None:
    record = {
        "y": 0,
        "a": 0,
        "prompt": "",
        "text": "",
        "replica": 0,
        "seed": 0,
        "sets": [],
        "attempt": 0,
        "rejected": [],
    }
    lines = [json.dumps({**record, "image": number, "file": f"images/000000-{'0' * 12}.png"}) for number in (0, 1)]
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(AimfairError, match=r"'images/000000-000000000000.png' is in several lines"):
        read_source(tmp_path, (2, 2), DataSettings())


def test_folders_with_other_names_are_named(folder: Path, tmp_path: Path) -> None:
    save_image(folder / "smiling/1.png", 77)
    save_image(folder / "00_1/1.png", 78)
    log = Warnings()
    copy_of(config(folder), tmp_path / "x", log)
    assert log.messages == [f"{folder}: ignored, as the name is not that of a group <y>_<a>: '00_1', 'smiling'"]


@pytest.mark.parametrize("typed", ["run", "run/synthetic/images"])
def test_the_folder_beside_the_one_that_is_meant_is_named(tmp_path: Path, typed: str) -> None:
    (tmp_path / "run/synthetic/images").mkdir(parents=True)
    (tmp_path / "run/synthetic/manifest.jsonl").touch()
    with pytest.raises(AimfairError, match=rf"did you mean {tmp_path}/run/synthetic\?$"):
        read_source(tmp_path / typed, (2, 2), DataSettings())


def test_the_folder_of_the_run_itself_is_refused(folder: Path, tmp_path: Path) -> None:
    for inside in (tmp_path / "run/synthetic", tmp_path, tmp_path / "run/synthetic/images"):
        with pytest.raises(ConfigError, match=r"generate.folder: found .*, which is or contains the images of this"):
            stage(tmp_path / "run", config(inside), overwrite=True)


def test_filters_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"images of generate\.folder are not filtered"):
        config(folder, generate={"filters": {"near_duplicates": 3}})


# -- again -------------------------------------------------------------------------------------------------------------


def test_a_second_run_copies_nothing_and_needs_no_source(folder: Path, tmp_path: Path) -> None:
    stage(tmp_path / "run", config(folder))
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "run/synthetic").rglob("*")}
    stage(tmp_path / "run", config(folder))
    folder.rename(tmp_path / "moved")
    stage(tmp_path / "run", config(folder))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run/synthetic").rglob("*")} == times


def test_a_changed_source_is_refused_and_replaced_when_asked(folder: Path, tmp_path: Path) -> None:
    stage(tmp_path / "run", config(folder))
    before = contents(tmp_path / "run/synthetic")
    save_image(folder / "0_0/new.png", 1000)
    with pytest.raises(AimfairError, match=r"its images are of another job: source differs; .*--overwrite"):
        stage(tmp_path / "run", config(folder))
    assert contents(tmp_path / "run/synthetic") == before
    stage(tmp_path / "run", config(folder), overwrite=True)
    assert contents(tmp_path / "run/synthetic") != before


def test_copying_touching_or_moving_the_source_changes_nothing(folder: Path, tmp_path: Path) -> None:
    """Of what follows from the images nothing is done again."""
    stage(tmp_path / "run", config(folder))

    def facts() -> tuple[dict[str, int], str]:
        with Run.open(tmp_path / "run", config(folder), overwrite=True, quiet=True) as run:
            made = {str(path): path.stat().st_mtime_ns for path in run.synthetic.rglob("*")}
            return made, run.digest_of("generate")

    before = facts()
    for path in folder.rglob("*.*"):
        os.utime(path, ns=(1, 1))
    stage(tmp_path / "run", config(folder))
    assert facts() == before
    shutil.copytree(folder, tmp_path / "copy")
    stage(tmp_path / "run", config(tmp_path / "copy"), overwrite=True)
    assert facts() == before


def test_a_lost_or_damaged_image_is_copied_again(folder: Path, tmp_path: Path) -> None:
    stage(tmp_path / "run", config(folder))
    before = contents(tmp_path / "run/synthetic")
    first, second, *_ = sorted((tmp_path / "run/synthetic/images").iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:-9])
    (tmp_path / "run/synthetic/images/999999-0123456789ab.png").write_bytes(b"what nobody asked for")
    stage(tmp_path / "run", config(folder))
    assert contents(tmp_path / "run/synthetic") == before


def test_images_of_a_model_are_not_taken_for_copies(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "run/synthetic"
    made.parent.mkdir()
    Job(made, small_plan()[:2], Provenance({"model": "m"}), GenerateSettings(batch_size=2), 8).run(
        lambda: NoiseSampler(8)
    )
    settings = config(folder)
    source = read_source(folder, (2, 2), settings.data)
    choice = imported.choose(source, settings.generate, settings.data, 2)
    provenance = Provenance.imported(source.digest, settings.generate, settings.data, 2)
    with pytest.raises(AimfairError, match="its images are of another job"):
        imported.copy_images(choice, made, provenance, settings.generate, overwrite=False)
    imported.copy_images(choice, made, provenance, settings.generate, overwrite=True)
    assert len(list((made / "images").iterdir())) == 26


def test_an_interrupt_keeps_what_is_copied(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imported, "_CHUNK", 4)
    original = imported._copy
    calls = []

    def interrupted(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        original(*arguments)

    monkeypatch.setattr(imported, "_copy", interrupted)
    with pytest.raises(Interrupted):
        stage(tmp_path / "run", config(folder))
    assert len(list((tmp_path / "run/synthetic/images").iterdir())) == 8
    assert not (tmp_path / "run/synthetic/manifest.jsonl").exists()
    stage(tmp_path / "run", config(folder))
    assert len(calls) == 26
    stage(tmp_path / "whole", config(folder))
    assert contents(tmp_path / "run/synthetic") == contents(tmp_path / "whole/synthetic")


def test_a_full_disk_ends_the_stage_and_a_new_start_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.write_bytes
    calls = []

    def full(path: Path, data: bytes) -> int:
        if path.parent.name == "images":
            calls.append(path)
        if len(calls) > 9:
            original(path, data[:4])
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            stage(tmp_path / "run", config(folder))
    assert not list((tmp_path / "run").rglob("*.tmp"))
    stage(tmp_path / "run", config(folder))
    stage(tmp_path / "whole", config(folder))
    assert contents(tmp_path / "run/synthetic") == contents(tmp_path / "whole/synthetic")


def test_an_image_that_changes_while_it_is_copied_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Folder.open

    def meddling(source: Folder, file: str) -> IO[bytes]:
        os.utime(folder / file, ns=(1, 1))
        return original(source, file)

    monkeypatch.setattr(Folder, "open", meddling)
    with pytest.raises(AimfairError, match=r"changed while images were copied; run again"):
        stage(tmp_path / "run", config(folder))
    assert not list((tmp_path / "run/synthetic/images").iterdir())


def test_of_several_processes_one_copies(folder: Path, tmp_path: Path) -> None:
    def body(here: Ranks) -> None:
        with Run.open(tmp_path / "run", config(folder), quiet=True, ranks=here) as run:
            generate.run(run)

    assert in_threads(body) == [None, None]
    assert len(list((tmp_path / "run/synthetic/images").iterdir())) == 26


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.generation.import_crash_points", str(tmp_path)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40


# -- to the report -----------------------------------------------------------------------------------------------------


def test_from_a_folder_to_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole pipeline on coloured digits; no image is generated."""
    from aimfair.data import digits
    from aimfair.diffusion import text_to_image as diffusion

    def generate_nothing(*_: object) -> None:
        pytest.fail("a generator is loaded")

    monkeypatch.setattr(diffusion.Diffusion, "__init__", generate_nothing)
    made = digits.balanced(DataSettings(), "generator")
    for number in range(160):
        path = tmp_path / f"elsewhere <b>/{made.target[number]}_{made.protected[number]}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(made.images[number])).save(path)
    small = {"epochs": 1, "batch_size": 32}
    settings = config(
        tmp_path / "elsewhere <b>",
        data={"image_size": 32, "minority_ratio": 1 / 9},
        generate={"balanced_per_group": 10, "biased_total": 40},
        seeds=[1],
        threads=1,
        train=small,
        sensitivity={"batch_size": 16},
        finetune=small,
        evaluate={"replicates": 100},
    )
    with Run.open(tmp_path / "run", settings, quiet=True) as run:
        run_stages(run)
        assert Results.load(run.results).methods["full"].density == 1
        page = run.report.read_text()
        summary = GenerationSummary.load(run.generation)
    assert summary.speed is None
    assert sum(group.kept for group in summary.groups) == 80
    assert re.search(r"Not generated by this run: 80 of \d+ images were copied from", page)
    assert "elsewhere &lt;b&gt;" in page
    assert "elsewhere <b>" not in page
    assert "were imported, not generated from these prompts" in page
    assert "<q></q>" not in page
