"""Prompts: the same contexts in every group, balanced words, refusal of what cannot be written."""

from collections import Counter
from pathlib import Path

import pytest

from aimfair.base.errors import AimfairError
from aimfair.prompts.grammar import Prompt, load_prompts, save_prompts, without_contexts, write_prompts
from tests.generation.samples import prompt_settings


def groups(prompts: list[Prompt]) -> dict[tuple[int, int], list[Prompt]]:
    found: dict[tuple[int, int], list[Prompt]] = {}
    for prompt in prompts:
        found.setdefault((prompt.y, prompt.a), []).append(prompt)
    return found


def test_groups_differ_in_nothing_but_their_words() -> None:
    of_group = groups(write_prompts(prompt_settings()))
    assert list(of_group) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    contexts = [prompt.contexts for prompt in of_group[0, 0]]
    for (y, a), prompts in of_group.items():
        assert [prompt.contexts for prompt in prompts] == contexts
        assert [prompt.target for prompt in prompts] == [["one", "two"], ["six", "seven"]][y] * 3
        assert {prompt.protected for prompt in prompts} == {["green", "red"][a]}
    first = of_group[1, 1][0]
    assert first.text == f"a six in red, {', '.join(first.contexts.values())}"


def test_words_for_both_attributes_are_combined_evenly() -> None:
    settings = prompt_settings(per_group=12, protected=[["green", "emerald", "lime"], ["red"]], contexts_per_prompt=3)
    of_group = groups(
        write_prompts(settings.model_copy(update={"contexts": {**settings.contexts, "size": ["s", "l"]}}))
    )
    pairs = Counter((prompt.target, prompt.protected) for prompt in of_group[0, 0])
    assert set(pairs.values()) == {2}
    assert len(pairs) == 6


def test_contexts_return_with_other_words_when_there_are_too_few() -> None:
    settings = prompt_settings(per_group=6, contexts={"tilt": ["left", "upright", "right"]}, contexts_per_prompt=1)
    for prompts in groups(write_prompts(settings)).values():
        assert len({prompt.text for prompt in prompts}) == 6
        assert set(Counter(prompt.target for prompt in prompts).values()) == {3}
        assert set(Counter(prompt.contexts["tilt"] for prompt in prompts).values()) == {2}


def test_more_prompts_than_there_are_is_refused_with_numbers() -> None:
    settings = prompt_settings(per_group=7, contexts={"tilt": ["left", "upright", "right"]}, contexts_per_prompt=1)
    with pytest.raises(AimfairError, match=r"found 7, expected at most 6,.*\(y=0, a=0\): 3 contexts.*2 wordings"):
        write_prompts(settings)


def test_without_contexts() -> None:
    prompts = write_prompts(prompt_settings(per_group=2, contexts_per_prompt=0, template="a {target} in {protected}"))
    assert [prompt.text for prompt in prompts[:2]] == ["a one in green", "a two in green"]


def test_the_same_words_alone() -> None:
    settings = prompt_settings(per_group=2)
    plain = without_contexts(settings, write_prompts(settings))
    assert plain[:4] == ["a one in green", "a two in green", "a one in red", "a two in red"]


def test_ids_are_stable_distinct_and_safe_in_paths() -> None:
    prompts = write_prompts(prompt_settings())
    assert prompts == write_prompts(prompt_settings())
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    assert all(prompt.id.replace("-", "").isalnum() for prompt in prompts)
    assert prompts != write_prompts(prompt_settings(seed=1))


@pytest.mark.parametrize("middle", ["in\n", "\a", "right\u202eto left", "x" * 2000])
def test_unusable_text_is_refused(middle: str) -> None:
    settings = prompt_settings().model_copy(update={"template": f"a {{target}} {middle} {{protected}}, {{contexts}}"})
    with pytest.raises(AimfairError, match=r"group \(y=0, a=0\).*expected 1 to 1000 printable"):
        write_prompts(settings)


def test_braces_in_words_stay_words() -> None:
    prompts = write_prompts(prompt_settings(per_group=1, targets=[["{protected}"], ["{0}"]]))
    assert prompts[0].text.startswith("a {protected} in green, ")


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"targets": [["one"], ["One"]]}, r"groups \(y=0, a=0\) and \(y=1, a=0\)"),
        ({"targets": [["one", "one"], ["six", "ten"]], "per_group": 24}, r"groups \(y=0, a=0\) and \(y=0, a=0\)"),
    ],
)
def test_one_text_twice_is_refused(changes: dict[str, object], where: str) -> None:
    with pytest.raises(AimfairError, match=where):
        write_prompts(prompt_settings(**changes))


def test_round_trip_and_damage(tmp_path: Path) -> None:
    path, prompts = tmp_path / "prompts.jsonl", write_prompts(prompt_settings(targets=[["sieben ü"], ['quoted "6"']]))
    save_prompts(path, prompts)
    assert load_prompts(path) == prompts
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1].replace('"y":0', '"y":"0"'), *lines[2:]]))
    with pytest.raises(AimfairError, match=r"prompts\.jsonl:2: y: "):
        load_prompts(path)
    path.write_text("\n".join(lines)[:-5])
    with pytest.raises(AimfairError, match=rf"prompts\.jsonl:{len(lines)}: line: "):
        load_prompts(path)
    with pytest.raises(AimfairError, match="there is no such file"):
        load_prompts(tmp_path / "other.jsonl")
