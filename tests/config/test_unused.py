"""Settings that are not used refuse nothing, and those that are given without an effect are told."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from aimfair.config import Config
from aimfair.config.unused import without_effect
from aimfair.run.directory import Run
from aimfair.stages import preflight
from aimfair.stages.pipeline import run_stages
from tests.tiny_run import SETTINGS


def change(**sections: dict) -> Config:
    data = SETTINGS["data"] | {"root": "/nowhere"}
    return Config.model_validate(
        SETTINGS | {"data": data} | {name: SETTINGS.get(name, {}) | values for name, values in sections.items()}
    )


WRONG_PROMPTS = [
    {"per_group": 10**6},
    {"template": "no placeholders"},
    {"contexts": {}},
    {"contexts": {"stroke": ["thin", "thin"]}},
    {"contexts_per_prompt": 9},
    {"provider": "openai"},
    {"provider": "transformers"},
    {"llm": {"avoid": [" "]}},
]


@pytest.mark.parametrize("prompts", WRONG_PROMPTS, ids=str)
def test_prompts_are_not_used_with_images_of_ones_own(tmp_path: Path, prompts: dict) -> None:
    with Run.open(tmp_path / "run", change(prompts=prompts, generate={"folder": "/mine"}), quiet=True) as run:
        run_stages(run, ["prompts"])
        assert not run.prompts.exists()


@pytest.mark.parametrize("prompts", WRONG_PROMPTS[1:], ids=str)
def test_they_are_checked_where_they_are_used(prompts: dict) -> None:
    with pytest.raises(ValidationError):
        change(prompts=prompts)


@pytest.mark.parametrize(
    "generate",
    [
        {"engine": "onnxruntime", "dtype": "bfloat16"},
        {"guidance_interval": [1, 0]},
        {"engine": "tensorrt", "tensorrt": {"targets": [86]}},
    ],
)
def test_nor_is_a_text_to_image_model(generate: dict) -> None:
    change(generate={"folder": "/mine"} | generate)
    with pytest.raises(ValidationError):
        change(generate=generate)


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"generate": {"folder": "/mine", "steps": 50}}, "generate.steps: has no effect, images are imported"),
        ({"generate": {"folder": "/mine"}, "prompts": {"provider": "openai"}}, "prompts.provider: has no effect"),
        (
            {"generate": {"tensorrt": {"profile": "dynamic"}}},
            "generate.tensorrt: has no effect, generate.engine is eager",
        ),
        ({"prompts": {"llm": {"temperature": 1}}}, "prompts.llm: has no effect, prompts.provider is grammar"),
        ({"train": {"momentum": 0.5}}, "train.momentum: has no effect, train.optimizer is adamw"),
        ({"finetune": {"step_epochs": 3}}, "finetune.step_epochs: has no effect, finetune.schedule is constant"),
    ],
    ids=lambda value: value.split(":")[0] if isinstance(value, str) else "",
)
def test_what_has_no_effect_is_told(sections: dict, line: str) -> None:
    lines = list(without_effect(change(**sections)))
    assert any(one.startswith(line) for one in lines), lines
    assert list(without_effect(change(train={"optimizer": "sgd", "momentum": 0.5}))) == []


def test_a_run_tells_them_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Run.open(tmp_path / "run", change(train={"momentum": 0.5}), quiet=True) as run:
        preflight.check(run, real_images=False)
    assert capsys.readouterr().err.count("train.momentum: has no effect, train.optimizer is adamw") == 1


def test_settings_of_tuning_without_trials() -> None:
    assert list(without_effect(change(tune={"held_out": 0.3}))) == ["tune.held_out: has no effect, tune.trials is 0"]
    assert not list(without_effect(change(tune={"held_out": 0.3, "trials": 2})))
