"""The rehearsal of a model that processes hold together, in a group of one process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from aimfair.base.errors import AimfairError
from aimfair.base.ranks import ALONE, Ranks
from aimfair.config import Config
from aimfair.run.directory import Run
from aimfair.selective.distributed import is_dtensor
from aimfair.stages import preflight
from aimfair.training.processes import Processes, out_of_memory
from aimfair.training.settings import SensitivitySettings
from aimfair.training.sharded_sensitivity import accumulate
from tests.tiny_run import METHODS, settings

SOME = {name: METHODS[name] for name in ("full", "aimfair", "jtt", "linear_probe")}


@pytest.fixture(autouse=True)
def sharded(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tiny / "cache"))
    monkeypatch.setattr(Processes, "sharded", True)
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def rehearse(config: Config, folder: Path, *, real_images: bool = True) -> None:
    with Run.open(folder / "run", config, quiet=True) as run:
        preflight.rehearse_together(run, real_images=real_images)


@pytest.mark.parametrize("real_images", [True, False])
def test_it_leaves_nothing_behind(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real_images: bool
) -> None:
    seen: list[bool] = []
    predict = preflight.predict
    monkeypatch.setattr(
        preflight, "predict", lambda model, *a, **k: seen.append(has_shards(model)) or predict(model, *a, **k)
    )
    rehearse(settings(photographs, methods=SOME), tmp_path, real_images=real_images)
    assert seen == [True]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", "config.yaml", "log.jsonl"}


def has_shards(model: nn.Module) -> bool:
    return all(map(is_dtensor, model.parameters()))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"methods": {"mine": {"rule": "blocks", "blocks": ["none"]}}, "default_method": "mine"},
            "methods.mine: no par",
        ),
        ({"model": {"factory": f"{__name__}:more", "config": {}}}, "gives 1000 logits for an image, expected 2"),
        ({"train": {"lr": 1e30}}, r"train: .* NaN or infinite"),
    ],
)
def test_what_cannot_be_used(photographs: Path, tmp_path: Path, sections: dict[str, object], message: str) -> None:
    with pytest.raises(AimfairError, match=message) as raised:
        rehearse(settings(photographs, **{"methods": SOME, **sections}), tmp_path)
    assert "\n" not in str(raised.value)
    assert not list((tmp_path / "run").glob(".preflight*"))


def more(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 1000))


def test_lack_of_memory_names_what_helps() -> None:
    message = (
        "^process 0: out of memory with batches of 64 images; lower sensitivity.batch_size, start more processes, or"
        " set model.checkpointing to true$"
    )
    with (
        pytest.raises(AimfairError, match=message),
        out_of_memory(ALONE, "with batches of 64 images", "lower sensitivity.batch_size, "),
    ):
        raise torch.OutOfMemoryError


def test_a_batch_of_sensitivity_has_an_image_for_each_process() -> None:
    four = Processes(Ranks(0, 4, dist.HashStore()))
    with pytest.raises(AimfairError, match=r"sensitivity\.batch_size: found 3, expected at least 4, an image for each"):
        accumulate(None, None, {}, 1, SensitivitySettings(batch_size=3), four, None, 1, None, None)  # type: ignore[arg-type]
