"""Provenance: its form on disk, and what makes two sets differ."""

import json
from pathlib import Path

import pytest

from aimfair.base.errors import AimfairError
from aimfair.data.settings import DataSettings
from aimfair.diffusion.model import SHIPPED
from aimfair.generation.provenance import JOB, Provenance, refuse_other_engine
from aimfair.generation.settings import GenerateSettings
from tests.generation.samples import prompt_settings

ENGINE = {"name": "onnxruntime", "onnxruntime": "1.0"}


def generated(**settings: object) -> Provenance:
    return Provenance.generated(GenerateSettings.model_validate(settings), prompt_settings(), SHIPPED["digits"])


def imported(digest: str = "d", **settings: object) -> Provenance:
    return Provenance.imported(digest, GenerateSettings.model_validate(settings), DataSettings(), 2)


@pytest.mark.parametrize("made", [generated(), generated().with_facts(engine=ENGINE), imported()])
def test_it_is_read_as_it_was_written(tmp_path: Path, made: Provenance) -> None:
    made.write(tmp_path)
    assert Provenance.read(tmp_path) == made
    assert Provenance.read_generated(tmp_path) == (made if made.source_digest is None else None)


@pytest.mark.parametrize("text", ["{", "[]", None])
def test_a_missing_or_damaged_file_is_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / JOB).write_text(text)
    assert Provenance.read(tmp_path) is None


def test_imports_of_earlier_versions_are_the_same(tmp_path: Path) -> None:
    facts = dict(imported().facts)
    facts |= {"bias": facts.pop("minority_ratio"), "pictures": facts.pop("source")}
    (tmp_path / JOB).write_text(json.dumps(facts))
    assert Provenance.read(tmp_path) == imported()


@pytest.mark.parametrize(
    "same", [{"batch_size": 3}, {"batch_size": "auto"}, {"max_rejections": 1}, {"allow_download": True}]
)
def test_settings_that_change_no_image_make_no_difference(same: dict[str, object]) -> None:
    assert generated(**same) == generated()


def test_another_decoder_is_another_set_wherever_it_is(tmp_path: Path) -> None:
    def with_decoder(name: str, weights: bytes) -> Provenance:
        (folder := tmp_path / name).mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(weights)
        settings = GenerateSettings(decoder=str(folder))
        return Provenance.generated(settings, prompt_settings(), SHIPPED["digits"], folder)

    first, copy, other = with_decoder("a", b"1"), with_decoder("b", b"1"), with_decoder("c", b"2")
    assert first == copy
    assert first.difference(other) == first.difference(generated()) == "decoder differs"


def test_defaults_have_the_facts_of_earlier_versions() -> None:
    """Or every existing run would make its images again."""
    assert set(generated().facts) == {"generate", "model"}
    assert set(generated().facts["generate"]) == {
        "steps", "guidance_scale", "guidance_interval", "scheduler", "negative_prompt", "render_size", "dtype",
        "balanced_per_group", "biased_total", "disjoint", "seed",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"quantization": "int8"}, {"quantization"}),
        ({"step_cache": "deep"}, {"step_cache", "step_cache_interval"}),
        ({"channels_last": True}, {"channels_last"}),
        ({"engine": "compile", "compile_regions": True}, {"compile_regions"}),
    ],
)
def test_shortcuts_are_facts(settings: dict[str, object], names: set[str]) -> None:
    found = generated(**settings)
    assert set(found.facts["generate"]) - set(generated().facts["generate"]) == names
    assert found != generated()


def test_differences_are_named() -> None:
    assert generated(steps=3).difference(generated(steps=4)) == "generate.steps differs"
    assert generated(steps=3, seed=1).difference(generated()) == "generate.seed, generate.steps differ"
    assert imported("a").difference(imported("b")) == "source differs"
    assert "model" in generated().difference(imported())


def test_engines() -> None:
    made = generated()
    assert (made.engine, made.engine_name) == (None, "eager")
    assert made.with_facts(engine=None) == made
    made = made.with_facts(engine=ENGINE)
    assert (made.engine, made.engine_name) == (ENGINE, "onnxruntime")
    refuse_other_engine(Path("x"), made, ENGINE)
    with pytest.raises(AimfairError, match=r"x: made with engine onnxruntime onnxruntime 1\.0, found eager; .*overwr"):
        refuse_other_engine(Path("x"), made, None)
