"""The two stages in a run directory, with a small model."""

import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import Interrupted
from aimfair.cluster.pool import Pool
from aimfair.config import Config
from aimfair.data.decode import read_rgb
from aimfair.diffusion.image_to_image import ImageToImage
from aimfair.diffusion.text_to_image import Diffusion
from aimfair.generation.manifest import Manifest
from aimfair.generation.summary import GenerationSummary
from aimfair.prompts.grammar import load_prompts
from aimfair.run.directory import Run
from aimfair.stages import generate, prompts
from tests.cluster.inline_pool import InlinePool
from tests.generation.samples import SIZE, prompt_settings
from tests.report.made_up import made_up_splits

BATCH = 4


@pytest.fixture
def settings(model: Path) -> dict[str, Any]:
    return {
        "device": "cpu",
        "data": {"image_size": SIZE, "minority_ratio": 0.5},
        "prompts": prompt_settings().model_dump(),
        "generate": {
            "model": str(model),
            "steps": 2,
            "batch_size": BATCH,
            "balanced_per_group": 3,
            "biased_total": 6,
        },
        "model": {"config": {"model_type": "resnet"}},
        "methods": {"full": {"rule": "all"}},
        "default_method": "full",
    }


def stages(path: Path, settings: dict[str, Any], pool: Pool | None = None) -> None:
    with Run.open(path, Config.model_validate(settings), overwrite=True, quiet=True) as run:
        run.pool = pool
        prompts.run(run)
        generate.run(run)


def change(settings: dict[str, Any], **values: object) -> dict[str, Any]:
    return {**settings, "generate": {**settings["generate"], **values}}


def contents(path: Path) -> dict[str, bytes]:
    files = [path / "prompts.jsonl", *(path / "synthetic").rglob("*")]
    return {str(file.relative_to(path)): file.read_bytes() for file in files if file.is_file()}


def test_tar_files_in_a_run(settings: dict[str, Any], tmp_path: Path) -> None:
    packed = change(settings, storage="webdataset", images_per_shard=5)
    stages(tmp_path / "run", packed)
    before = contents(tmp_path / "run")
    assert {Path(name).suffix for name in before} == {".tar", ".json", ".jsonl"}
    stages(tmp_path / "run", packed)
    assert contents(tmp_path / "run") == before
    stages(tmp_path / "run", settings)
    assert {Path(name).suffix for name in contents(tmp_path / "run")} == {".webp", ".json", ".jsonl"}


def test_rejections_of_each_group_end_the_stage(settings: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "my_filter.py").write_text(
        "def some(images, groups): return ['odd' if image.sum() % 2 and y else None"
        " for image, (y, a) in zip(images, groups)]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_filter", raising=False)
    stages(tmp_path / "run", change(settings, filters={"hooks": ["my_filter:some"]}, max_rejections=5))
    events = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    told = [event["message"] for event in events if event["event"] == "note" and "rejected of" in event["message"]]
    groups = sorted(
        GenerationSummary.load(tmp_path / "run" / "generation.json").groups, key=lambda one: -one.rejection_rate
    )
    names = {(0, 0): "one, green", (0, 1): "one, red", (1, 0): "six, green", (1, 1): "six, red"}
    assert groups[0].y == 1
    assert groups[0].rejected
    assert told == [
        f"rejected of {names[one.y, one.a]}: {(one.made - one.kept) / one.made:.1%} of {one.made} images"
        + (f" (odd {one.rejected['odd']})" if one.rejected else "")
        for one in groups
    ]


@pytest.fixture
def samplers(monkeypatch: pytest.MonkeyPatch) -> list[Diffusion]:
    """Grows by every model that is loaded."""
    loaded: list[Diffusion] = []
    original = Diffusion.__init__

    def count(self: Diffusion, *args: Any) -> None:
        loaded.append(self)
        original(self, *args)

    monkeypatch.setattr(Diffusion, "__init__", count)
    return loaded


def test_prompts_and_both_sets(tmp_path: Path, settings: dict[str, Any], samplers: list[Diffusion]) -> None:
    stages(tmp_path, settings)
    assert len(load_prompts(tmp_path / "prompts.jsonl")) == 4 * 6
    balanced, biased = (Manifest(tmp_path / "synthetic").load(name, SIZE, "crop") for name in ("balanced", "biased"))
    assert balanced.group_counts(2, 2).tolist() == [[3, 3], [3, 3]]
    assert biased.group_counts(2, 2).tolist() == [[1, 2], [2, 1]]
    assert balanced.images.std() > 10
    stages(tmp_path, settings)
    assert len(samplers) == 1


def test_what_changes_no_image_repeats_nothing(
    tmp_path: Path, settings: dict[str, Any], samplers: list[Diffusion]
) -> None:
    stages(tmp_path, settings)
    stages(tmp_path, change(settings, batch_size=7, max_rejections=0.5))
    assert len(samplers) == 1


@pytest.mark.parametrize("value", [{"steps": 3}, {"biased_total": 8}, {"seed": 1}, {"pairs": {"held_out": 2}}])
def test_what_changes_images_makes_them_again(tmp_path: Path, settings: dict[str, Any], value: dict[str, Any]) -> None:
    stages(tmp_path / "changed", settings)
    stages(tmp_path / "changed", change(settings, **value))
    stages(tmp_path / "fresh", change(settings, **value))
    assert contents(tmp_path / "changed") == contents(tmp_path / "fresh")


def test_shortcuts_are_compared_with_the_plain_model(
    tmp_path: Path, settings: dict[str, Any], samplers: list[Diffusion]
) -> None:
    stages(tmp_path, change(settings, engine="eager"))
    assert GenerationSummary.load(tmp_path / "generation.json").comparison is None
    assert len(samplers) == 1
    changed = change(settings, engine="eager", guidance_interval=[0.0, 0.5])
    stages(tmp_path, changed)
    found = GenerationSummary.load(tmp_path / "generation.json")
    assert found.comparison is not None
    assert (found.comparison.shortcuts, found.comparison.images) == ({"guidance_interval": [0.0, 0.5]}, 8)
    assert found.comparison.largest > 0
    assert found.speed is not None
    assert sum(found.speed.parts.values()) < found.speed.sampling  # without the comparison


def test_one_process_of_a_pool_compares_for_all(
    tmp_path: Path, settings: dict[str, Any], samplers: list[Diffusion]
) -> None:
    """The others make no second model; what is lost after the comparison does not repeat it."""
    pool = InlinePool(lose={"generate 0 0": 1})
    stages(tmp_path, change(settings, engine="eager", guidance_interval=[0.0, 0.5], batch_size=2), pool)
    found = GenerationSummary.load(tmp_path / "generation.json").comparison
    assert found is not None
    assert (found.shortcuts, found.images) == ({"guidance_interval": [0.0, 0.5]}, 4)  # as many as its range has
    assert len(samplers) == 4 + 1
    assert {file.name for file in (tmp_path / "synthetic").iterdir()} == {"images", "job.json", "manifest.jsonl"}


def test_the_batch_size_is_found_before_the_first_image(
    tmp_path: Path, settings: dict[str, Any], samplers: list[Diffusion], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, sizes = Diffusion.sample, []

    def counted(self: Diffusion, texts: Any, seeds: Any) -> Any:
        sizes.append(len(texts))
        return original(self, texts, seeds)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Diffusion, "speed_of", lambda _, size, __: None if size > 8 else float(size))
    monkeypatch.setattr(Diffusion, "sample", counted)
    automatic = change(settings, engine="eager", batch_size="auto")
    stages(tmp_path / "run", automatic)
    assert sizes[0] == max(sizes) == 8
    assert len(samplers) == 2  # one of them to try
    stages(tmp_path / "run", automatic)
    assert len(samplers) == 2


def test_a_signal_in_the_middle_and_a_lost_image_change_nothing(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stages(tmp_path / "whole", settings)
    calls = 0
    original = Diffusion.sample

    def interrupted(self: Diffusion, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            signal.raise_signal(signal.SIGTERM)
        return original(self, *args)

    monkeypatch.setattr(Diffusion, "sample", interrupted)
    with pytest.raises(Interrupted) as stopped:
        stages(tmp_path / "cut", settings)
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    made = sorted((tmp_path / "cut" / "synthetic" / "images").iterdir())
    assert len(made) == 2 * BATCH  # the current batch is finished
    made[5].unlink()
    stages(tmp_path / "cut", settings)
    assert calls == 6  # five batches, and one for the lost image
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_texts_that_the_model_cannot_read_are_refused_before_the_first_image(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Diffusion, "sample", lambda *_: pytest.fail("images are made"))
    words = {**settings["prompts"], "targets": [["one", "two"], ["six", "Ärger"]]}  # in the last of the groups
    with pytest.raises(AimfairError, match="does not know the words 'Ärger'"):
        stages(tmp_path, {**settings, "prompts": words})


def test_a_changed_model_is_refused_where_there_are_images(
    tmp_path: Path, settings: dict[str, Any], model: Path
) -> None:
    other = Path(shutil.copytree(model, tmp_path / "model"))
    here = change(settings, model=str(other))
    stages(tmp_path / "run", here)
    before = contents(tmp_path / "run")
    path = other / "unet" / "config.json"
    path.write_text(path.read_text() + "\n")
    with (
        Run.open(tmp_path / "run", Config.model_validate(here), quiet=True) as run,
        pytest.raises(AimfairError, match=r"its images are of another job: model differs; .*--overwrite"),
    ):
        generate.run(run)
    assert contents(tmp_path / "run") == before


def test_images_before_prompts_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with (
        Run.open(tmp_path, Config.model_validate(settings), quiet=True) as run,
        pytest.raises(AimfairError, match="'prompts' is not finished"),
    ):
        generate.run(run)


def test_a_changed_filter_is_another_job(
    tmp_path: Path, settings: dict[str, Any], samplers: list[Diffusion], monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = tmp_path / "hook_of_stages.py"
    hook.write_text("def judge(images, groups):\n    return [None] * len(images)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    filtered = change(settings, filters={"hooks": ["hook_of_stages:judge"]}, max_rejections=3)
    stages(tmp_path / "run", filtered)
    stages(tmp_path / "run", filtered)
    assert len(samplers) == 1
    summary = GenerationSummary.load(tmp_path / "run" / "generation.json")
    assert [group.made for group in summary.groups] == [group.kept for group in summary.groups] == [4, 5, 5, 4]
    hook.write_text(
        "def judge(images, groups):\n"
        "    return ['odd' if (y, a) == (0, 1) and int(image.sum()) % 3 == 0 else None"
        " for image, (y, a) in zip(images, groups)]\n"
    )
    monkeypatch.delitem(sys.modules, "hook_of_stages")
    stages(tmp_path / "run", filtered)
    assert len(samplers) == 2
    summary = GenerationSummary.load(tmp_path / "run" / "generation.json")
    assert [group.kept for group in summary.groups] == [4, 5, 5, 4]
    assert [set(group.rejected) for group in summary.groups] == [set(), {"odd"}, set(), set()]
    assert summary.speed is not None
    assert summary.speed.images == sum(group.made for group in summary.groups)
    assert 0 < summary.speed.sampling <= summary.speed.seconds


def test_pairs_are_made_from_real_images(
    tmp_path: Path, settings: dict[str, Any], samplers: list[Diffusion], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The balanced set from training images, the held-out pairs from others; other strengths are other images."""
    splits = made_up_splits((1, 1, 1, 1), (3, 3, 3, 3))
    monkeypatch.setattr(generate, "splits_of", lambda _: splits)
    edits = change(settings, pairs={"held_out": 2, "strength": 0.5})
    stages(tmp_path, edits)
    records = list(Manifest(tmp_path / "synthetic").records.values())
    assert all(isinstance(one, ImageToImage) for one in samplers)
    for record in records:
        assert record.source is not None
        assert record.source.startswith("val/" if "held_out" in record.sets else "train/")
    record = records[2]
    editor = samplers[0]
    assert isinstance(editor, ImageToImage)
    image = editor.edit([record.text], [record.seed], [record.source or ""]).images[0]
    found = np.asarray(read_rgb(tmp_path / "synthetic" / record.file, SIZE**2)).astype(int)
    assert np.abs(found - image).max() <= 1
    before = contents(tmp_path)
    stages(tmp_path, edits)
    assert (contents(tmp_path), len(samplers)) == (before, 1)
    used = next(one.source for one in records if one.source is not None and "held_out" not in one.sets)
    splits.train.images[int(used.split("/")[1])] ^= 1
    with (
        Run.open(tmp_path, Config.model_validate(edits), quiet=True) as run,
        pytest.raises(AimfairError, match="its images are of another job: real_images differs"),
    ):
        generate.run(run)
    stages(tmp_path, edits)
    assert (contents(tmp_path) != before, len(samplers)) == (True, 2)
    before = contents(tmp_path)
    stages(tmp_path, change(settings, pairs={"held_out": 2, "strength": 1.0}))
    assert len(samplers) == 3
    assert contents(tmp_path) != before
