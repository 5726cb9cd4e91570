"""The stages with a user's own model, and with every way to run one."""

from pathlib import Path

import pytest

from aimfair.base.errors import AimfairError
from aimfair.config import Config
from aimfair.selective.mask import ParameterMask
from aimfair.stages.pipeline import run_stages
from aimfair.training.models import build_model, load_model, save_model
from tests.training.samples import MODEL, state_bits
from tests.training.test_execution import Blocks
from tests.training.test_stages import (  # noqa: F401 - fixtures
    as_in_the_run,
    change,
    do,
    events,
    finished,
    generated,
    opened,
)


def make(num_classes: int) -> Blocks:
    assert num_classes == 2
    return Blocks()


OWN = {"factory": f"{__name__}:make", "config": {}, "mean": MODEL.mean, "std": MODEL.std}
LOW = {**OWN, "autocast": "bfloat16", "checkpointing": True, "channels_last": False}


def tuned(path: Path, settings: Config) -> dict[str, bytes]:
    return state_bits(load_model(path / "seeds" / "7" / "finetuned" / "aimfair", settings.model))


def test_an_own_model_goes_through_all_stages(generated, change):  # noqa: F811
    settings = change(model=OWN)
    assert len(do(generated, settings)) == 6
    home = generated / "seeds" / "7"
    baseline = load_model(home / "baseline", settings.model)
    mask = ParameterMask.load(home / "masks" / "aimfair.safetensors", baseline)
    after = load_model(home / "finetuned" / "aimfair", settings.model).state_dict()
    moved = {name: after[name] != weight for name, weight in baseline.named_parameters()}
    assert any(changed.any() for changed in moved.values())
    assert not any((moved[name] & ~selected).any() for name, selected in mask.to_bool().items())
    with pytest.raises(AimfairError, match="is imported only if the settings'"):
        load_model(home / "baseline")


@pytest.mark.slow
def test_how_a_model_is_run_is_part_of_what_is_done(generated, change):  # noqa: F811
    exact, low = change(model=OWN), change(model=LOW, sensitivity={"batch_size": 8, "statistics": "sum"})
    do(generated, exact)
    before = tuned(generated, exact)
    assert do(generated, exact) == []
    assert len(do(generated, low)) == 6
    assert tuned(generated, low) != before
    do(generated, exact)
    assert tuned(generated, exact) == before


def test_another_normalisation_than_the_pretrained_models_is_told_once(generated, change, tmp_path):  # noqa: F811
    folder = tmp_path / "pretrained"
    save_model(build_model(MODEL, 2, 1), folder)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.1, 0.1], "image_std": [0.2, 0.2, 0.2]}')
    with opened(generated, change(model={"pretrained": str(folder), "config": {}}, seeds=[7, 8])) as run:
        run_stages(run, ["train", "sensitivity"])
    warnings = [event["message"] for event in events(generated) if event["event"] == "warning"]
    assert len([message for message in warnings if "set model.mean and model.std" in message]) == 1
