"""What pydantic finds wrong, in one line with file, line and key."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from aimfair.base.settings import Problem

Key = tuple[str | int, ...]
"""A place in a tree of settings, such as ("train", "lr") or ("data", "majority", 0)."""

_EXPECTED = {
    "model_type": "keys and values",
    "dict_type": "keys and values",
    "list_type": "a list",
    "tuple_type": "a list",
    "string_type": "a text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "path_type": "a folder",
}
"""Words for pydantic's kinds of fault where its own are those of another language."""


def explain(fault: Any, tree: Any, origins: Mapping[Key, str], nearest: Callable[[str], str]) -> str:
    """One line for a fault that pydantic found: "file:line: key: found, expected".

    Args:
        fault: of ``ValidationError.errors()``.
        tree: what was validated.
        origins: place in it -> file and line, or flag; () may stand for the whole.
        nearest: of an unknown key, what may have been meant: "; did you mean train.lr?".
    """
    problem = fault.get("ctx", {}).get("error")
    key: Key = fault["loc"]
    key = _without_type_names(key, tree, keep_last=fault["type"] == "missing")
    if isinstance(problem, Problem):
        key += problem.key
    name = ".".join(str(part) for part in key)
    near = next((origins[key[:n]] for n in range(len(key), -1, -1) if key[:n] in origins), "")
    where = ": ".join(part for part in (near, name if near != f"--{name}" else "") if part)
    if fault["type"] == "extra_forbidden":
        return f"{where}: unknown key{nearest(name)}"
    if fault["type"] == "missing":
        return f"{where}: missing, and it has no default"
    if problem is not None:
        return f"{where}: {problem}"
    expected = _EXPECTED.get(fault["type"], fault["msg"].removeprefix("Input should be "))
    found = json.dumps(fault["input"])
    return f"{where}: found {found if len(found) <= 80 else found[:77] + '...'}, expected {expected}"


def _without_type_names(location: Key, tree: Any, *, keep_last: bool) -> Key:
    """A location without the members of unions that pydantic tried there: they are no keys of ours.

    Args:
        keep_last: the last part is a key that ``tree`` lacks.
    """
    key: list[str | int] = []
    for part in location:
        inside = (isinstance(tree, dict) and part in tree) or (isinstance(tree, list) and isinstance(part, int))
        if inside:
            key.append(part)
            tree = tree[part]
    return (*key, location[-1]) if keep_last else tuple(key)
