"""Diversity: every number by hand on a few prompts, the same over groups of different sizes, and thousands in time."""

import json
import math
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from aimfair.base.errors import AimfairError
from aimfair.config import Config
from aimfair.prompts import diversity
from aimfair.prompts.diversity import Diversity, measure
from aimfair.prompts.grammar import Prompt, load_prompts, write_prompts
from aimfair.run.directory import Run
from aimfair.stages import prompts
from tests.generation.samples import prompt_settings

SETTINGS = prompt_settings(
    contexts={"tilt": ["left", "right", "up", "down"], "size": ["big"]}, template="{target} {protected} {contexts}"
)


def prompt(y: int, text: str, **contexts: str) -> Prompt:
    return Prompt(id=text, y=y, a=0, text=text, contexts=contexts, target=f"t{y}", protected="p")


@pytest.fixture
def found() -> Diversity:
    return measure(
        [
            prompt(1, "a b", tilt="LEFT "),
            prompt(0, "a red dog", tilt="left"),
            prompt(0, "a red cat", tilt="left", size="big"),
            prompt(0, "A dog", tilt="right"),
            prompt(0, "A dog", hue="red"),
        ],
        SETTINGS,
    )


def test_words(found: Diversity) -> None:
    first, second = found.contextual
    assert (first.y, first.a, first.prompts, first.compared) == (0, 0, 4, 4)
    assert first.distinct_1 == pytest.approx(4 / 10)  # a red dog cat
    assert first.distinct_2 == pytest.approx(4 / 6)  # a red, red dog, red cat, a dog; "a red" and "a dog" twice
    assert first.similarity == pytest.approx((2 / 4 + 2 / 3 + 2 / 3 + 1 / 4 + 1 / 4 + 1) / 6)
    assert (second.y, second.prompts, second.distinct_1, second.distinct_2, second.similarity) == (1, 1, 1.0, 1.0, None)
    one_word = measure([prompt(0, "one"), prompt(0, "one")], SETTINGS).contextual[0]
    assert (one_word.distinct_2, one_word.similarity) == (None, 1.0)


def test_plain_prompts_say_the_two_attributes_alone(found: Diversity) -> None:
    first, second = found.plain
    assert (first.prompts, first.distinct_1, first.distinct_2, first.similarity) == (4, 2 / 8, 1 / 4, 1.0)
    assert (second.prompts, second.distinct_1, second.similarity) == (1, 1.0, None)


def test_contexts(found: Diversity) -> None:
    tilt, size, hue = found.attributes
    assert [(one.name, one.values) for one in found.attributes] == [("tilt", 4), ("size", 1), ("hue", 0)]
    first, second = tilt.groups
    assert (first.values, first.coverage) == ({"left": 2, "right": 1}, 2 / 4)
    assert first.evenness == pytest.approx((2 / 3 * math.log(3 / 2) + 1 / 3 * math.log(3)) / math.log(4))
    assert (second.values, second.coverage, second.evenness) == ({"left": 1}, 1 / 4, 0.0)
    assert tilt.difference == pytest.approx(1 / 2)  # left 2/4 and 1, right 1/4 and 0, none 1/4 and 0
    assert tilt.between == ((0, 0), (1, 0))
    assert ([group.values for group in size.groups], size.difference) == ([{"big": 1}, {}], pytest.approx(1 / 4))
    assert [group.coverage for group in size.groups] == [1.0, 0.0]
    assert [group.evenness for group in (*size.groups, *hue.groups)] == [None] * 4
    assert [group.coverage for group in hue.groups] == [0.0, 0.0]
    assert found.greatest_difference == tilt


def test_values_that_a_model_found_are_as_even_as_they_can_be() -> None:
    of = [prompt(0, f"x{i}", tilt=f"{i} degrees") for i in range(9)]
    assert measure(of, SETTINGS).attributes[0].groups[0].evenness == pytest.approx(1.0)
    of[8] = prompt(0, "x8", tilt="0 degrees")
    expected = (7 / 9 * math.log(9) + 2 / 9 * math.log(9 / 2)) / math.log(8)
    assert measure(of, SETTINGS).attributes[0].groups[0].evenness == pytest.approx(expected)


def test_prompts_of_the_grammar_differ_in_no_context() -> None:
    for seed in range(5):
        settings = prompt_settings(seed=seed)
        found = measure(write_prompts(settings), settings)
        assert [attribute.difference for attribute in found.attributes] == [0.0] * 3
        assert [group.coverage for attribute in found.attributes for group in attribute.groups] == [1.0] * 12
        for plain, contextual in zip(found.plain, found.contextual, strict=True):
            assert plain.prompts == contextual.prompts == 6
            assert plain.distinct_1 < contextual.distinct_1  # type: ignore[operator]
            assert plain.similarity > contextual.similarity  # type: ignore[operator]


def test_more_shared_values_are_less_difference() -> None:
    def difference(shared: int) -> float:
        zero = [prompt(0, f"x{i}", tilt="left") for i in range(10)]
        one = [prompt(1, f"y{i}", tilt="left" if i < shared else "up") for i in range(10)]
        return measure(zero + one, SETTINGS).attributes[0].difference

    assert [difference(shared) for shared in (0, 3, 10)] == [1.0, pytest.approx(0.7), 0.0]


def test_without_contexts() -> None:
    settings = prompt_settings(contexts={}, contexts_per_prompt=0, template="{target} {protected}", per_group=2)
    found = measure(write_prompts(settings), settings)
    assert (found.attributes, found.greatest_difference) == ([], None)
    assert found.plain == found.contextual


@pytest.mark.slow
def test_twenty_thousand_prompts_take_little_time_and_memory() -> None:
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(5000)]
    many = [
        prompt(i % 4, " ".join(words[int(k)] for k in 5000 * rng.random(4) ** 3), tilt=words[int(rng.integers(5000))])
        for i in range(20_000)
    ]
    start = time.monotonic()
    tracemalloc.start()
    found = measure(many, SETTINGS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.monotonic() - start < 60
    assert peak < 150e6  # every two of 5,000 prompts alone would be 100 MB for each matrix
    assert [one.compared for one in found.contextual] == [diversity.MOST_COMPARED] * 4


def test_a_sample_is_near_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = prompt_settings(
        per_group=600,
        contexts={f"c{k}": [f"{k}{v}" for v in "abcdefgh"] for k in range(6)},
        contexts_per_prompt=4,
    )
    written = write_prompts(settings)
    whole = measure(written, settings).contextual[0]
    monkeypatch.setattr(diversity, "MOST_COMPARED", 200)
    drawn = measure(written, settings).contextual[0]
    assert (whole.compared, drawn.compared) == (600, 200)
    assert drawn.similarity == pytest.approx(whole.similarity, abs=0.01)
    assert drawn.similarity != whole.similarity
    assert measure(written, settings).contextual[0] == drawn


def test_texts_without_words_share_none() -> None:
    found = measure([prompt(0, text) for text in ("!", "?", "a red dog", "a red cat")], SETTINGS).contextual[0]
    assert found.similarity == pytest.approx(2 / 4 / 6)


def test_the_file(tmp_path: Path) -> None:
    tree = {
        "device": "cpu",
        "prompts": prompt_settings().model_dump(),
        "model": {"config": {"model_type": "resnet"}},
        "methods": {"full": {"rule": "all"}},
        "default_method": "full",
    }
    with Run.open(tmp_path, Config.model_validate(tree), quiet=True) as run:
        prompts.run(run)
        written = run.diversity.read_bytes()
        assert Diversity.load(run.diversity) == measure(load_prompts(run.prompts), run.config.prompts)
        run.diversity.unlink()
        prompts.run(run)
        assert run.diversity.read_bytes() == written
        assert run.digest_of("prompts")
    assert set(json.loads(written)) == {"provider", "attributes", "contextual", "plain"}
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [event["greatest_difference"][1] for event in events if event["event"] == "prompts"] == [0.0, 0.0]


def test_a_file_that_is_not_one(tmp_path: Path) -> None:
    path = tmp_path / "diversity.json"
    with pytest.raises(AimfairError, match=r"diversity\.json: there is no such file; .*aimfair prompts writes it"):
        Diversity.load(path)
    for text, key in (("{}", "provider"), ('{"provider": "grammar"', "file"), ("[]", "file")):
        path.write_text(text)
        with pytest.raises(AimfairError, match=rf"diversity\.json: {key}: .*remove the file"):
            Diversity.load(path)
