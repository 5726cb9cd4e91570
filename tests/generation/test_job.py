"""The job: what it makes, what it finds again, what it rejects and what it refuses."""

import errno
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import Interrupt, Interrupted
from aimfair.base.memory import MicroBatch, pieces
from aimfair.data.decode import read_rgb
from aimfair.diffusion.sampler import Samples
from aimfair.generation import worker
from aimfair.generation.image_folder import outputs
from aimfair.generation.job import Job
from aimfair.generation.manifest import Manifest, Shards, seed_of_attempt
from aimfair.generation.plan import PlannedImage
from aimfair.generation.provenance import Provenance
from aimfair.generation.rounds import refuse_only_rejections
from aimfair.generation.settings import GenerateSettings
from aimfair.generation.summary import GenerationSummary
from tests.generation.samples import SIZE, NoiseSampler, small_plan

PLAN = small_plan()


def job_in(
    folder: Path,
    *,
    plan: list[PlannedImage] = PLAN,
    recipe: str = "noise",
    image_size: int = SIZE,
    batch_size: int = 8,
    max_rejections: float = 0.2,
    overwrite: bool = False,
    finished: GenerationSummary | None = None,
    **settings: Any,
) -> Job:
    generate = GenerateSettings.model_validate(
        {"batch_size": batch_size, "max_rejections": max_rejections, "image_format": "png", **settings}
    )
    provenance = Provenance({"recipe": recipe})
    return Job(folder, plan, provenance, generate, image_size, overwrite=overwrite, finished=finished)


def make(folder: Path, sampler: NoiseSampler | None = None, **changes: object) -> Job:
    job = job_in(folder, **changes)  # type: ignore[arg-type]
    job.run(lambda: sampler or NoiseSampler())
    return job


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def no_sampler() -> NoiseSampler:
    raise AssertionError("nothing is missing, no model is needed")


class Stop(Interrupt):
    """Asks to stop at the ``after``-th check."""

    def __init__(self, after: int):
        super().__init__()
        self.left = after

    def check(self) -> None:
        if not self.left:
            raise Interrupted(2)
        self.left -= 1


def test_every_planned_image_is_there_with_its_line(tmp_path: Path) -> None:
    sampler = NoiseSampler()
    job = make(tmp_path, sampler)
    lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == list(range(len(PLAN)))
    for line, planned in zip(lines, PLAN, strict=True):
        assert {name: line[name] for name in planned.model_dump()} == planned.model_dump()
        assert (line["attempt"], line["rejected"]) == (0, [])
        expected = sampler.sample([planned.text], [planned.seed]).images[0]
        assert np.array_equal(np.asarray(read_rgb(tmp_path / line["file"], SIZE**2)), expected)
    assert job.done == len(job.plan) == len(PLAN)
    assert set(contents(tmp_path)) == {"job.json", "manifest.jsonl", *(line["file"] for line in lines)}
    assert all(path.exists() for path in outputs(tmp_path))


def test_the_rest_of_the_pipeline_reads_it(tmp_path: Path) -> None:
    make(tmp_path)
    for name in ("balanced", "biased"):
        planned = [planned for planned in PLAN if name in planned.sets]
        images = Manifest(tmp_path).load(name, SIZE, "crop")  # type: ignore[arg-type]
        assert list(zip(images.target, images.protected, strict=True)) == [(one.y, one.a) for one in planned]
    assert make(tmp_path).done == len(PLAN)  # what the reader keeps beside them does not disturb the job


def test_a_finished_job_needs_no_model(tmp_path: Path) -> None:
    make(tmp_path)
    before = contents(tmp_path)
    job_in(tmp_path).run(no_sampler)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("after", [0, 1, 3])
def test_interrupted_between_batches_and_continued(tmp_path: Path, after: int) -> None:
    make(tmp_path / "whole")
    with pytest.raises(Interrupted):
        job_in(tmp_path / "cut").run(NoiseSampler, interrupt=Stop(after))
    job = job_in(tmp_path / "cut")
    assert job.done == 8 * after
    sampler = NoiseSampler()
    job.run(lambda: sampler)
    assert sum(map(len, sampler.batches)) == len(PLAN) - 8 * after
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace(path: Path) -> None:
    Image.new("RGB", (SIZE, SIZE), "red").save(path)


@pytest.mark.parametrize("damage", [truncate, replace, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_image_is_made_again_with_the_same_neighbours(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    make(tmp_path)
    before = contents(tmp_path)
    damage(tmp_path / Manifest(tmp_path).records[11].file)
    sampler = NoiseSampler()
    job = job_in(tmp_path)
    assert job.done == len(PLAN) - 1
    job.run(lambda: sampler)
    assert sampler.batches == [[planned.seed for planned in PLAN[8:16]]]
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_kill_9_at_any_moment(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "tests.generation.crash_points", str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 300


def test_rejected_images_get_new_seeds_and_keep_their_place(tmp_path: Path) -> None:
    bad = {PLAN[k].seed for k in (0, 9, 10)} | {seed_of_attempt(PLAN[9], 1)}
    sampler = NoiseSampler(change=lambda seed, pixels: pixels // 64 if seed in bad else pixels)
    job = make(tmp_path, sampler, max_rejections=1)
    records = Manifest(tmp_path).records
    assert {image: record.attempt for image, record in records.items() if record.attempt} == {0: 1, 9: 2, 10: 1}
    assert records[9].seed == seed_of_attempt(PLAN[9], 2)
    assert (records[9].y, records[9].prompt) == (PLAN[9].y, PLAN[9].prompt)
    assert job.rejected == Counter(black=4) == job_in(tmp_path).rejected


def test_duplicates_are_found_across_batches_and_after_a_restart(tmp_path: Path) -> None:
    twins = {PLAN[2].seed, PLAN[30].seed}

    def twin(seed: int, pixels: np.ndarray) -> np.ndarray:
        return np.arange(pixels.size, dtype=np.uint8).reshape(pixels.shape) if seed in twins else pixels

    make(tmp_path / "whole", NoiseSampler(change=twin))
    records = Manifest(tmp_path / "whole").records
    assert (records[2].rejected, records[30].rejected) == ([], ["duplicate"])
    with pytest.raises(Interrupted):
        job_in(tmp_path / "cut").run(lambda: NoiseSampler(change=twin), interrupt=Stop(2))
    make(tmp_path / "cut", NoiseSampler(change=twin))
    (tmp_path / "cut" / records[2].file).unlink()  # made again, it must not be taken for the twin of its twin
    make(tmp_path / "cut", NoiseSampler(change=twin))
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_model_that_always_fails_is_given_up_early(tmp_path: Path) -> None:
    sampler = NoiseSampler(change=lambda _, pixels: pixels * 0)
    with pytest.raises(AimfairError, match=r"the first 10 images were all rejected \(black 10\); try generate.dtype"):
        make(tmp_path, sampler, batch_size=1, max_rejections=1)
    assert len(sampler.batches) <= 10 + 4  # those that wait for their files


def test_a_filter_that_rejects_the_first_images_ends_no_job(tmp_path: Path) -> None:
    """Whatever the size of a batch; but if it rejects a hundred, it rejects them all."""

    class First:
        def __init__(self, bad: int):
            self.left = bad

        def reasons(self, images: np.ndarray, groups: Sequence[tuple[int, int]]) -> list[str | None]:
            self.left -= len(images)
            return ["odd" if self.left >= 0 else None for _ in images]

    job = job_in(tmp_path / "some", batch_size=1, max_rejections=1)
    job.run(NoiseSampler, lambda: [First(20)])
    assert (job.done, job.rejected) == (len(PLAN), Counter(odd=20))
    job = job_in(tmp_path / "all", plan=small_plan(50), batch_size=25, max_rejections=1)
    with pytest.raises(AimfairError, match=r"the first 100 images were all rejected \(odd 100\); try looser"):
        job.run(NoiseSampler, lambda: [First(1000)])


def test_an_image_that_always_fails_is_given_up(tmp_path: Path) -> None:
    bad = {seed_of_attempt(PLAN[7], attempt) for attempt in range(6)}
    sampler = NoiseSampler(change=lambda seed, pixels: pixels * 0 if seed in bad else pixels)
    with pytest.raises(AimfairError, match=r"image 7 \('a .*5 times in a row \(black 5\); try"):
        make(tmp_path, sampler, max_rejections=1)
    assert list(map(len, sampler.batches)) == [8, 8, 8, 8, 1, 1, 1, 1]
    assert job_in(tmp_path).done == len(PLAN) - 1


def test_a_filter_that_rejects_many_ends_no_large_job(tmp_path: Path) -> None:
    class Some:
        """Takes two of five away, by their pixels; of a thousand images, some ten six times in a row."""

        def reasons(self, images: np.ndarray, groups: Sequence[tuple[int, int]]) -> list[str | None]:
            return ["odd" if int(image.sum()) % 5 < 2 else None for image in images]

    plan = small_plan(250)
    job = job_in(tmp_path, plan=plan, batch_size=64, max_rejections=1)
    job.run(NoiseSampler, lambda: [Some()])
    assert job.done == len(plan)
    assert max(record.attempt for record in Manifest(tmp_path).records.values()) > 5
    assert 0.5 < job.rejected["odd"] / len(plan) < 0.75


def test_too_many_rejections_end_the_job_and_leave_what_is_good(tmp_path: Path) -> None:
    bad = {planned.seed for planned in PLAN[4:8]}
    sampler = NoiseSampler(change=lambda seed, pixels: pixels * 0 + 99 if seed in bad else pixels)
    with pytest.raises(
        AimfairError, match=r"\(constant 4\), more than 10% of the 32 wanted; 3 of them are of group \(y=0, a=0\)"
    ):
        make(tmp_path, sampler, max_rejections=0.1)
    assert job_in(tmp_path).done >= 4
    assert make(tmp_path, sampler, max_rejections=0.2).done == len(PLAN)


@pytest.mark.parametrize(
    ("rejected", "advice"),
    [
        ({"black": 3, "odd": 2}, r"try generate\.dtype float32"),
        ({"black": 2, "odd": 3}, r"try looser generate\.filters or prompts"),
        ({"shows_y1": 5}, r"try looser generate\.filters, if its classifier is wrong about these images, or prompts"),
    ],
)
def test_the_advice_depends_on_who_rejects(rejected: dict[str, int], advice: str) -> None:
    with pytest.raises(AimfairError, match=advice):
        refuse_only_rejections(Counter({reason: 20 * number for reason, number in rejected.items()}), 100)


def test_images_are_reduced_to_what_the_classifier_sees(tmp_path: Path) -> None:
    make(tmp_path / "small", image_size=8)
    make(tmp_path / "large", image_size=64)
    for folder, size in (("small", 8), ("large", SIZE)):
        for record in Manifest(tmp_path / folder).records.values():
            assert read_rgb(tmp_path / folder / record.file, SIZE**2).size == (size, size)


@pytest.mark.parametrize("changes", [{"recipe": "other"}, {"plan": small_plan(4)}, {"image_size": 8}])
def test_images_of_another_job_are_removed_if_that_is_wanted(tmp_path: Path, changes: dict[str, object]) -> None:
    make(tmp_path / "images of a run")
    before = contents(tmp_path / "images of a run")
    with pytest.raises(AimfairError, match=rf"of another job: {next(iter(changes))} differs; .*--overwrite"):
        make(tmp_path / "images of a run", **changes)
    assert contents(tmp_path / "images of a run") == before
    make(tmp_path / "images of a run", **changes, overwrite=True)
    make(tmp_path / "fresh", **changes)
    assert contents(tmp_path / "images of a run") == contents(tmp_path / "fresh")


def test_a_damaged_job_file_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "made")
    truncate(tmp_path / "made" / "job.json")
    with pytest.raises(AimfairError, match=r"of another job: job\.json is damaged; .*--overwrite"):
        job_in(tmp_path / "made")
    assert job_in(tmp_path / "made", overwrite=True).done == 0


def test_a_folder_may_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir()
    (tmp_path / "made").symlink_to(tmp_path / "large disk")
    make(tmp_path / "made")
    make(tmp_path / "made", recipe="other", overwrite=True)
    assert (tmp_path / "made").is_symlink()
    assert len(list((tmp_path / "large disk" / "images").iterdir())) == len(PLAN)


def test_folders_of_others_among_the_images_stay(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "images" / ".ipynb_checkpoints").mkdir()
    assert job_in(tmp_path).done == len(PLAN)
    assert (tmp_path / "images" / ".ipynb_checkpoints").is_dir()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(AimfairError, match=r"holds thesis\.tex but no job\.json"):
        job_in(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_stray_images_and_half_a_line_are_removed(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        job_in(tmp_path).run(NoiseSampler, interrupt=Stop(2))
    before = contents(tmp_path)
    (tmp_path / "images" / "000099-0123456789ab.png").write_bytes(b"stray")
    with (tmp_path / "shards" / "0.jsonl").open("a") as file:
        file.write('{"image":99,"attem')
    assert job_in(tmp_path).done == 16
    assert contents(tmp_path) == before


def test_damaged_lines_of_a_job_that_has_not_ended_cost_their_images(tmp_path: Path) -> None:
    make(tmp_path / "whole")
    with pytest.raises(Interrupted):
        job_in(tmp_path / "cut").run(NoiseSampler, interrupt=Stop(2))
    path = tmp_path / "cut" / "shards" / "0.jsonl"
    path.write_text(path.read_text().replace('"image":3,', '"image":"3",').replace('"image":4,', '"image":99,'))
    job = job_in(tmp_path / "cut")
    assert job.done == 14
    assert job.damage == f"{path.parent}: damaged; 0 lines are recovered, images without a line are made again"
    job.run(NoiseSampler)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


MANIFEST_DAMAGE = {
    "in a line": truncate,
    "last lines": lambda path: path.write_text("".join(path.read_text().splitlines(keepends=True)[:5])),
    "empty": lambda path: path.write_bytes(b""),
    "gone": Path.unlink,
    "junk": lambda path: path.write_bytes(bytes(range(256)) * 40),
    "a path": lambda path: path.write_text(path.read_text().replace("images/000003", "../../000003")),
    "a number": lambda path: path.write_text(path.read_text().replace('{"image":3,', '{"image":4,')),
    "an attempt": lambda path: path.write_text(path.read_text().replace('"attempt":0', '"attempt":1')),
}


@pytest.mark.parametrize("damage", MANIFEST_DAMAGE.values(), ids=MANIFEST_DAMAGE)
def test_a_damaged_manifest_is_made_again_from_the_images(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    summary = make(tmp_path, **FILTERED).summary
    before = contents(tmp_path)
    damage(tmp_path / "manifest.jsonl")
    job = job_in(tmp_path, finished=summary, **FILTERED)
    assert job.done == len(PLAN)
    assert "manifest.jsonl: damaged; " in str(job.damage)
    job.run(no_sampler)
    assert contents(tmp_path) == before


FILTERED = {"filters": {"near_duplicates": 0}}


def test_images_of_a_lost_line_are_made_again_where_others_were_rejected(tmp_path: Path) -> None:
    """Their files do not tell which attempt made them."""
    bad = {PLAN[1].seed}
    sampler = NoiseSampler(change=lambda seed, pixels: pixels // 64 if seed in bad else pixels)
    summary = make(tmp_path, sampler, max_rejections=1).summary
    before = contents(tmp_path)
    (tmp_path / "manifest.jsonl").write_bytes(b"")
    job = job_in(tmp_path, finished=summary, max_rejections=1)
    assert job.done == sum(planned.group != PLAN[1].group for planned in PLAN)
    job.run(lambda: sampler)
    assert contents(tmp_path) == before


def test_a_damaged_manifest_keeps_the_attempts_that_it_still_has(tmp_path: Path) -> None:
    bad = {PLAN[1].seed}
    sampler = NoiseSampler(change=lambda seed, pixels: pixels // 64 if seed in bad else pixels)
    summary = make(tmp_path, sampler, max_rejections=1).summary
    before = contents(tmp_path)
    truncate(tmp_path / "manifest.jsonl")
    job_in(tmp_path, finished=summary, max_rejections=1).run(no_sampler)
    assert contents(tmp_path) == before


def test_an_image_and_its_line_that_are_both_damaged(tmp_path: Path) -> None:
    summary = make(tmp_path).summary
    before = contents(tmp_path)
    truncate(tmp_path / Manifest(tmp_path).records[11].file)
    (tmp_path / "manifest.jsonl").write_bytes(b"")
    job = job_in(tmp_path, finished=summary)
    assert job.done == len(PLAN) - 1
    job.run(NoiseSampler)
    assert contents(tmp_path) == before


def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "whole")
    append, appended = Shards.append, False

    def watched(*arguments: Any) -> None:
        nonlocal appended
        append(*arguments)
        appended = True

    def full(descriptor: int) -> None:
        if appended:  # the lines of the first batch are there to stay
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Shards, "append", watched)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        make(tmp_path / "full")
    monkeypatch.undo()
    job = job_in(tmp_path / "full")
    assert 0 < job.done < len(PLAN)
    job.run(NoiseSampler)
    assert contents(tmp_path / "full") == contents(tmp_path / "whole")


# -- files and filters beside the sampler ------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_both_formats_keep_every_pixel(tmp_path: Path, image_format: str) -> None:
    job = make(tmp_path, image_format=image_format)
    records = Manifest(tmp_path).records
    sampler = NoiseSampler()
    for planned in PLAN:
        path = tmp_path / records[planned.image].file
        assert path.suffix == f".{image_format}"
        assert np.array_equal(
            np.asarray(read_rgb(path, SIZE**2)), sampler.sample([planned.text], [planned.seed]).images[0]
        )
    assert len(Manifest(tmp_path).load("balanced", SIZE, "crop")) == 20
    assert job_in(tmp_path, image_format=image_format).done == job.done == len(PLAN)


def test_the_sampler_goes_on_while_files_are_written_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a bound all batches would be in memory; without the queue the sampler would wait for every file."""
    gate, ahead = threading.Event(), threading.Event()
    original = worker.encode

    def slow(*args: Any) -> bytes:
        assert gate.wait(20)
        return original(*args)

    class Counting(NoiseSampler):
        def sample(self, texts: Sequence[str], seeds: Sequence[int]) -> Samples:
            made = super().sample(texts, seeds)
            if len(self.batches) == 4:  # the first three wait for their files
                ahead.set()
                threading.Timer(0.2, gate.set).start()
            assert len(self.batches) <= 4 or gate.is_set()
            return made

    monkeypatch.setattr(worker, "encode", slow)
    sampler = Counting()
    job = job_in(tmp_path, batch_size=4)
    job.run(lambda: sampler)
    assert ahead.is_set()
    assert len(sampler.batches) == 8
    assert job.speed is not None
    assert 0.1 < job.speed.stalled <= job.speed.seconds
    assert (job.speed.images, job.speed.processes) == (len(PLAN), 1)


def test_an_error_of_a_thread_is_that_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(worker, "encode", full)
    sampler, before = NoiseSampler(), set(threading.enumerate())
    with pytest.raises(OSError, match="No space left"):
        make(tmp_path, sampler, batch_size=1)
    assert len(sampler.batches) <= 4
    assert set(threading.enumerate()) <= before


def test_out_of_memory_halves_and_goes_on(tmp_path: Path) -> None:
    class Small(NoiseSampler):
        """Has memory for three images."""

        def __init__(self) -> None:
            super().__init__()
            self.fitting = MicroBatch(8)

        def sample(self, texts: Sequence[str], seeds: Sequence[int]) -> Samples:
            def work(size: int) -> Samples:
                parts = [self._part(texts[part], seeds[part]) for part in pieces(len(texts), size)]
                return Samples(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

            return self.fitting.attempt(work)

        def _part(self, texts: Sequence[str], seeds: Sequence[int]) -> Samples:
            if len(texts) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().sample(texts, seeds)

    make(tmp_path / "whole")
    sampler = Small()
    make(tmp_path / "halved", sampler)
    assert contents(tmp_path / "halved") == contents(tmp_path / "whole")
    assert max(map(len, sampler.batches)) == 2
    assert sampler.fitting.size == 2


class NotOne:
    """A filter that has something against even first values in the groups (1, a)."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def reasons(self, images: np.ndarray, groups: Sequence[tuple[int, int]]) -> list[str | None]:
        self.sizes.append(len(images))
        return ["even" if y and not image[0, 0, 0] % 2 else None for image, (y, _) in zip(images, groups, strict=True)]


def test_a_filter_rejects_within_groups_and_the_summary_counts(tmp_path: Path) -> None:
    judge = NotOne()
    bad = {PLAN[1].seed}
    job = job_in(tmp_path, max_rejections=3)
    job.run(lambda: NoiseSampler(change=lambda seed, pixels: pixels * 0 if seed in bad else pixels), lambda: [judge])
    records = Manifest(tmp_path).records
    assert [(record.y, record.a) for record in records.values()] == [(planned.y, planned.a) for planned in PLAN]
    assert records[1].rejected == ["black"]
    for record in records.values():
        first = np.asarray(read_rgb(tmp_path / record.file, SIZE**2))[0, 0, 0]
        assert not record.y or first % 2
        assert record.rejected in ([], ["black"]) if not record.y else set(record.rejected) <= {"even"}
    summary = job.summary
    assert [(group.y, group.a) for group in summary.groups] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert summary.groups[0].rejected == {"black": 1}
    even = sum(len(record.rejected) for record in records.values() if record.y)
    assert even > 3
    assert sum(group.rejected.get("even", 0) for group in summary.groups[2:]) == even
    for group in summary.groups:
        of_group = [record for record in records.values() if (record.y, record.a) == (group.y, group.a)]
        assert group.kept == len(of_group)
        assert group.made == len(of_group) + sum(len(record.rejected) for record in of_group)
    assert sum(judge.sizes) == sum(group.made for group in summary.groups)
    summary.save(tmp_path / "generation.json")
    assert GenerationSummary.load(tmp_path / "generation.json") == summary


def test_near_duplicates_of_a_group_are_replaced_and_the_first_is_kept(tmp_path: Path) -> None:
    group = [planned for planned in PLAN if (planned.y, planned.a) == (0, 1)]
    other = next(planned for planned in PLAN if (planned.y, planned.a) == (1, 1))
    alike = {group[1].seed: 0, group[3].seed: 1, group[4].seed: 2, other.seed: 3}
    same = np.asarray(
        Image.fromarray(np.random.default_rng(1).integers(0, 256, (4, 4, 3), np.uint8)).resize((SIZE,) * 2)
    )

    def change(seed: int, pixels: np.ndarray) -> np.ndarray:
        return np.clip(same.astype(int) + alike[seed], 0, 255).astype(np.uint8) if seed in alike else pixels

    make(tmp_path / "whole", NoiseSampler(change=change), filters={"near_duplicates": 3})
    records = Manifest(tmp_path / "whole").records
    found = {image: record.rejected for image, record in records.items() if record.rejected}
    assert found == {group[3].image: ["near_duplicate"], group[4].image: ["near_duplicate"]}
    make(tmp_path / "off", NoiseSampler(change=change))
    assert not any(record.rejected for record in Manifest(tmp_path / "off").records.values())
    (tmp_path / "whole" / records[group[1].image].file).unlink()  # made again, it is still the first
    before = set(contents(tmp_path / "whole"))
    make(tmp_path / "whole", NoiseSampler(change=change), filters={"near_duplicates": 3})
    assert Manifest(tmp_path / "whole").records == records
    assert {*contents(tmp_path / "whole")} == before | {records[group[1].image].file}
