"""The plan of images: counts, balance over prompts, disjoint sets, one seed per image."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aimfair.base.errors import AimfairError
from aimfair.data.biased_subset import group_sizes
from aimfair.data.settings import DataSettings
from aimfair.generation.plan import PlannedImage, make_plan
from aimfair.generation.settings import GenerateSettings
from aimfair.prompts.grammar import write_prompts
from tests.generation.samples import prompt_settings

PROMPTS = write_prompts(prompt_settings())


def plan_of(disjoint: bool, per_group: int, total: int, ratio: float = 1 / 9, seed: int = 0) -> list[PlannedImage]:
    generate = GenerateSettings(balanced_per_group=per_group, biased_total=total, disjoint=disjoint, seed=seed)
    return make_plan(PROMPTS, generate, DataSettings(minority_ratio=ratio, majority=[1, 0]))


@given(st.booleans(), st.integers(1, 40), st.integers(1, 90), st.floats(0.01, 1))
@settings(max_examples=60, deadline=None)
def test_properties(disjoint: bool, per_group: int, total: int, ratio: float) -> None:
    plan = plan_of(disjoint, per_group, total, ratio)
    balanced = [planned for planned in plan if "balanced" in planned.sets]
    biased = [planned for planned in plan if "biased" in planned.sets]
    assert [planned.image for planned in plan] == list(range(len(plan)))
    assert all(planned.sets for planned in plan)
    sizes = group_sizes([1, 0], 2, ratio, total)
    assert Counter((planned.y, planned.a) for planned in balanced) == {
        (y, a): per_group for y in (0, 1) for a in (0, 1)
    }
    in_groups = Counter((planned.y, planned.a) for planned in biased)
    assert all(in_groups[y, a] == sizes[y, a] for y in (0, 1) for a in (0, 1))
    assert len(biased) == total
    if disjoint:
        assert len(plan) == len(balanced) + len(biased)
    else:
        assert len(plan) == sum(max(per_group, int(size)) for size in sizes.flat)
    assert len({planned.seed for planned in plan}) == len(plan)
    assert len({(planned.prompt, planned.replica) for planned in plan}) == len(plan)
    of_prompt = {prompt.id: prompt for prompt in PROMPTS}
    for planned in plan:
        prompt = of_prompt[planned.prompt]
        assert (planned.y, planned.a, planned.text) == (prompt.y, prompt.a, prompt.text)
    for images in (balanced, biased):
        for y, a in ((0, 0), (0, 1), (1, 0), (1, 1)):
            used = Counter(planned.prompt for planned in images if (planned.y, planned.a) == (y, a))
            counts = [used[prompt.id] for prompt in PROMPTS if (prompt.y, prompt.a) == (y, a)]
            assert max(counts) - min(counts) <= 1


def test_seeds_follow_the_run_and_not_the_size_of_the_sets() -> None:
    small, large = (plan_of(False, per_group, 4) for per_group in (3, 30))
    seeds = {(planned.prompt, planned.replica): planned.seed for planned in large}
    assert all(seeds[planned.prompt, planned.replica] == planned.seed for planned in small)
    assert not {planned.seed for planned in plan_of(False, 3, 4, seed=1)} & {planned.seed for planned in small}


def test_without_disjoint_the_biased_set_takes_balanced_images_first() -> None:
    plan = plan_of(False, 10, 40)  # groups of 2 and 18
    assert Counter(tuple(planned.sets) for planned in plan if (planned.y, planned.a) == (0, 0)) == {
        ("balanced", "biased"): 2,
        ("balanced",): 8,
    }
    assert Counter(tuple(planned.sets) for planned in plan if (planned.y, planned.a) == (0, 1)) == {
        ("balanced", "biased"): 10,
        ("biased",): 8,
    }


def test_prompts_for_other_classes_are_refused() -> None:
    with pytest.raises(AimfairError, match=r"found groups.*\(1, 1\)\], expected.*3 target classes of data\.majority"):
        make_plan(PROMPTS, GenerateSettings(), DataSettings(majority=[1, 0, 1]))
