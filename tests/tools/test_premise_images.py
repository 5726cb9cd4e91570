"""The sheets of emoji: who is in them, and that wrong packages and tones in the wrong order are refused."""

import numpy as np
import pytest

from tools.premise_images import PACKAGES, TONES, make, people
from tools.premise_images import _require_order as require_order

SKINS = {tone: {} for tone in TONES}


def entry(code: str, name: str, order: int, subcategory: str = "person-role") -> dict:
    return {
        "unified": code, "name": name, "sort_order": order, "subcategory": subcategory, "skin_variations": SKINS
    }  # fmt: skip


def test_people_are_pairs_in_unicodes_order():
    emoji = [
        entry("1F3C3-200D-2640-FE0F", "WOMAN RUNNING", 9, "person-activity"),
        entry("1F3C3-200D-2642-FE0F", "MAN RUNNING", 8, "person-activity"),
        entry("1F3C3-200D-2640-FE0F-200D-27A1-FE0F", "WOMAN RUNNING FACING RIGHT", 10, "person-activity"),
        entry("1F471-200D-2640-FE0F", "WOMAN: BLOND HAIR", 7, "person"),
        entry("1F469-200D-1F33E", "WOMAN FARMER", 5),
        entry("1F468-200D-1F33E", "MAN FARMER", 4),
        entry("1F9D1-200D-1F33E", "FARMER", 3),
        *(entry(code, name, order) for order, (code, name) in enumerate([
            ("1F467", "GIRL"), ("1F466", "BOY"), ("1F475", "OLDER WOMAN"), ("1F474", "OLDER MAN"),
            ("1F930", "PREGNANT WOMAN"), ("1FAC3", "PREGNANT MAN"), ("1F478", "PRINCESS"), ("1F934", "PRINCE"),
            ("1F936", "MOTHER CHRISTMAS"), ("1F385", "FATHER CHRISTMAS"), ("1F483", "DANCER"), ("1F57A", "MAN DANCING"),
        ], 20)),
    ]  # fmt: skip
    found = people(emoji)
    names = [(one.name, one.scene) for one in found]
    assert names[:3] == [("farmer", "portrait"), ("running", "action"), ("child", "portrait")]
    assert len(found) == 8
    assert (found[0].woman["name"], found[0].man["name"]) == ("WOMAN FARMER", "MAN FARMER")


def test_tones_must_get_darker():
    require_order([180, 200, 150, 100, 50], "dark hair on light skin")
    with pytest.raises(ValueError, match="farmer: tones are not in order"):
        require_order([200, 150, 180, 100, 50], "farmer")


def test_another_package_is_refused(tmp_path):
    for package in PACKAGES.values():
        (tmp_path / package.file).write_bytes(np.random.default_rng(0).bytes(10))
    with pytest.raises(ValueError, match="SHA-256 is"):
        make(tmp_path, tmp_path / "out")
