"""Contexts: different, as many as asked, and balanced."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aimfair.prompts.grammar import count_contexts, draw_contexts


def attributes(*sizes: int) -> dict[str, list[str]]:
    return {f"a{k}": [f"v{k}.{v}" for v in range(size)] for k, size in enumerate(sizes)}


def spread(counts: list[int]) -> int:
    return max(counts) - min(counts)


@st.composite
def wishes(draw: st.DrawFn) -> tuple[dict[str, list[str]], int, int]:
    """(values, size, count) that can be had."""
    values = attributes(*draw(st.lists(st.integers(1, 5), min_size=1, max_size=5)))
    size = draw(st.integers(0, len(values)))
    return values, size, draw(st.integers(1, min(40, count_contexts(values, size))))


@given(wishes(), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_contexts_are_different_and_complete(wish: tuple[dict[str, list[str]], int, int], seed: int) -> None:
    values, size, count = wish
    contexts = draw_contexts(values, size, count, seed)
    assert len({tuple(context.items()) for context in contexts}) == count
    for context in contexts:
        assert len(context) == size
        assert all(value in values[name] for name, value in context.items())
        assert list(context) == [name for name in values if name in context]  # in the order of the settings
    assert contexts == draw_contexts(values, size, count, seed)


@given(st.integers(1, 5), st.integers(1, 5), st.data())
@settings(max_examples=60, deadline=None)
def test_every_beginning_is_balanced(number: int, length: int, data: st.DataObject) -> None:
    values = attributes(*[length] * number)
    size = data.draw(st.integers(1, number))
    count = data.draw(st.integers(1, min(40, count_contexts(values, size))))
    contexts = draw_contexts(values, size, count, data.draw(st.integers(0, 99)))[: data.draw(st.integers(1, count))]
    used = Counter(name for context in contexts for name in context)
    assert spread([used[name] for name in values]) <= 2
    for name, words in values.items():
        counts = Counter(context.get(name) for context in contexts)
        assert spread([counts[word] for word in words]) <= 2


def test_the_demo_is_balanced_to_one() -> None:
    values = {"stroke": list("abc"), "tilt": list("def"), "paper": list("ghi"), "size": list("jk")}
    contexts = draw_contexts(values, 3, 50, 0)
    for name, words in values.items():
        counts = Counter(context.get(name) for context in contexts)
        assert spread([counts[word] for word in words]) <= 1


def test_too_many_to_list_are_drawn() -> None:
    values = attributes(*[12] * 9)
    contexts = draw_contexts(values, 5, 30, 1)
    assert count_contexts(values, 5) == 126 * 12**5
    assert len({tuple(context.items()) for context in contexts}) == 30
    used = Counter(name for context in contexts for name in context)
    assert spread([used[name] for name in values]) <= 1


def test_seed_matters() -> None:
    values = attributes(4, 4, 4)
    assert draw_contexts(values, 2, 10, 0) != draw_contexts(values, 2, 10, 1)


def test_all_contexts_and_no_more() -> None:
    values = attributes(2, 3)
    assert len(draw_contexts(values, 1, 5, 0)) == 5
    assert draw_contexts(values, 0, 1, 0) == [{}]
    with pytest.raises(ValueError, match="found 5 contexts, expected 6"):
        draw_contexts(values, 1, 6, 0)
