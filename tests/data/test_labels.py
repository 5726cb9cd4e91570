"""Roles of attributes: products, what the evaluation gets, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from aimfair.base.errors import ConfigError
from aimfair.config import load as config_file
from aimfair.data.labels import MAX_VALUES, Attribute, Labels, product
from aimfair.data.settings import DataSettings


@st.composite
def attributes(draw: st.DrawFn) -> list[Attribute]:
    """Up to four attributes of up to twenty images; not every value has an image."""
    n = draw(st.integers(0, 20))
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    return [
        Attribute(
            np.array(draw(st.lists(st.integers(0, size - 1), min_size=n, max_size=n)), dtype=np.int64),
            tuple(f"{place}{value}" for value in range(size)),
        )
        for place, size in enumerate(sizes)
    ]


@given(attributes())
def test_a_product_names_the_values_of_each(single: list[Attribute]) -> None:
    crossed = product(single)
    assert len(crossed.names) == np.prod([len(one.names) for one in single])
    assert len(set(crossed.names)) == len(crossed.names)
    for image, value in enumerate(crossed.values):
        assert crossed.names[value].split(", ") == [one.names[one.values[image]] for one in single]
    assert list(crossed.names) == sorted(crossed.names)  # the first is the major one: names here sort so


@given(st.lists(st.text("abc12", min_size=1), min_size=1))
def test_texts_become_numbers_and_names(texts: list[str]) -> None:
    attribute = Attribute.of_texts(texts)
    assert [attribute.names[value] for value in attribute.values] == texts
    assert set(attribute.names) == set(texts)


def test_order_of_names() -> None:
    assert Attribute.of_texts(["10", "9", "009"]).names == ("009", "9", "10")
    assert Attribute.of_texts(["10", "9", "x"]).names == ("10", "9", "x")


def test_numbers_of_any_length_are_sorted() -> None:
    longest = "7" * 5000
    assert Attribute.of_texts(["10", longest, "9", "010", "0"]).names == ("0", "9", "010", "10", longest)


def settings(**changes: object) -> DataSettings:
    return DataSettings.model_validate(
        {"kind": "table", "root": Path("."), "target": "sick", "protected": "sex", **changes}
    )


KNOWN = {
    "sick": Attribute.of_texts(["no", "yes", "no", "yes"]),
    "sex": Attribute.of_texts(["f", "m", "m", "f"]),
    "site": Attribute.of_texts(["A", "B", "C", "C"]),
    "age": Attribute.of_texts(["old", "old", "young", "old"]),
    "hospital": Attribute.of_texts(["H"] * 4),
}


def test_roles() -> None:
    labels = Labels.of(settings(), KNOWN)
    assert (labels.target, labels.protected, labels.attributes) == (KNOWN["sick"], KNOWN["sex"], {})
    labels = Labels.of(settings(audit=["site"]), KNOWN)
    assert labels.attributes == {"site": KNOWN["site"]}
    labels = Labels.of(settings(intersect_with=["age", "site"], audit=[]), KNOWN)
    assert labels.protected.names[:4] == ("f, old, A", "f, old, B", "f, old, C", "f, young, A")
    assert labels.protected.values.tolist() == [0, 7, 11, 2]
    assert list(labels.attributes) == ["sex", "age", "site"]
    labels = Labels.of(settings(intersect_with=["age"], audit=["site"]), KNOWN)
    assert list(labels.attributes) == ["sex", "age", "site"]
    assert labels.attributes["site"] is KNOWN["site"]


def test_a_subset_is_one_of_every_attribute() -> None:
    labels = Labels.of(settings(intersect_with=["age"], audit=["site"]), KNOWN).subset(np.array([3, 1]))
    assert labels.target.values.tolist() == [1, 1]
    assert labels.protected.values.tolist() == [0, 2]
    assert {name: one.values.tolist() for name, one in labels.attributes.items()} == {
        "sex": [0, 1],
        "age": [0, 0],
        "site": [2, 1],
    }


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"target": "hospital"}, "target"),
        ({"protected": "hospital"}, "protected"),
        ({"intersect_with": ["hospital"]}, "intersect_with"),
        ({"audit": ["hospital"]}, "audit"),
    ],
)
def test_one_value_is_refused_in_every_role(changes: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"data.{key}: 'hospital' has 1 value, H, expected two or more"):
        Labels.of(settings(**changes), KNOWN)


def test_numbers_and_ids_are_no_protected_attributes() -> None:
    many = [str(number) for number in range(MAX_VALUES + 1)]
    known = {**KNOWN, "id": Attribute.of_texts(many)}
    with pytest.raises(
        ConfigError, match=r"data.audit: 'id' has 101 values, such as '0' and '1', expected at most 100"
    ):
        Labels.of(settings(audit=["id"]), known)
    assert Labels.of(settings(target="id"), known).target is known["id"]
    known = {"id": Attribute.of_texts(many[:60]), "sick": KNOWN["sick"], "sex": Attribute.of_texts(["f", "m"] * 30)}
    assert Labels.of(settings(audit=["id"]), known).attributes == {"id": known["id"]}
    with pytest.raises(ConfigError, match=r"data.intersect_with: 120 combinations of values of sex, id, expected at"):
        Labels.of(settings(intersect_with=["id"]), known)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protected": "sick"}, r"found 'sick', which is data.target, expected another"),
        ({"intersect_with": ["sick"]}, r"found 'sick', which is data.target"),
        ({"intersect_with": ["sex"]}, r"found 'sex', which is data.protected"),
        ({"intersect_with": ["age", "age"]}, r"found 'age', which is data.intersect_with"),
        ({"audit": ["sick"]}, r"found 'sick', which is data.target"),
        ({"audit": ["sex"]}, r"found 'sex', which is data.protected"),
        ({"intersect_with": ["age"], "audit": ["age"]}, r"found 'age', which is data.intersect_with"),
        ({"audit": ["age", "age"]}, r"found 'age', which is data.audit"),
        (
            {"table": "labels.xlsx"},
            r"found 'labels.xlsx', expected a file in data.root that ends in .csv, .tsv, .jsonl",
        ),
        ({"table": "../labels.csv"}, r"found '../labels.csv', expected a file in data.root"),
        ({"table": "/labels.csv"}, r"found '/labels.csv', expected a file in data.root"),
        (
            {"kind": "utkface", "target": "gender", "protected": "sex"},
            r"found 'sex', expected one of gender, white, race",
        ),
        (
            {"kind": "utkface", "target": "gender", "protected": "age", "audit": ["rase"]},
            r"found 'rase', expected one of",
        ),
        (
            {"kind": "utkface", "target": "gender", "protected": "age", "group_column": "person"},
            r"found 'person'; utkface has no columns, remove it",
        ),
        (
            {"kind": "digits", "target": "digit", "protected": "ink", "audit": ["paper"]},
            r"digits have no attribute but",
        ),
        (
            {"kind": "digits", "target": "digit", "protected": "ink", "intersect_with": ["paper"]},
            r"found 'paper'; digits have no attribute but their ink, remove it",
        ),
    ],
)
def test_roles_without_sense_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**changes)


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({}, None),
        ({"kind": "imagefolder", "intersect_with": ["age"]}, None),
        ({"kind": "celeba", "audit": ["age"]}, (2, 2)),
        ({"kind": "celeba", "intersect_with": ["age"]}, (2, 4)),
        ({"kind": "celeba", "intersect_with": ["age", "site"]}, (2, 8)),
        ({"kind": "utkface", "target": "race", "protected": "age"}, (5, 4)),
        ({"kind": "utkface", "target": "gender", "protected": "race", "audit": ["age"]}, (2, 5)),
        ({"kind": "utkface", "target": "gender", "protected": "white", "intersect_with": ["age"]}, (2, 8)),
        ({"kind": "digits", "target": "digit", "protected": "ink"}, (10, 2)),
        ({"kind": "digits", "target": "at_least_five", "protected": "ink"}, (2, 2)),
    ],
)
def test_the_shape_of_groups_is_known_beforehand(changes: dict[str, object], shape: tuple[int, int] | None) -> None:
    assert settings(**changes).group_shape() == shape


def test_the_prompts_need_words_for_each_combination() -> None:
    celeba = Path(config_file.__file__).parents[1] / "configs" / "celeba-smiling-male.yaml"
    assert config_file.load(celeba, {"data.audit": "Young,Bald"}).data.audit == ["Young", "Bald"]
    with pytest.raises(ConfigError, match=r"prompts.protected: found 2 lists of words, expected 4, one for each value"):
        config_file.load(celeba, {"data.intersect_with": "Young"})
