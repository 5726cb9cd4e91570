"""Validation errors in one line each, with file, line and key."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from aimfair.base.settings import Problem

Key = tuple[str | int, ...]
"""A place in a tree of settings, such as ("train", "lr") or ("data", "majority", 0)."""

RENAMED = {
    "data.bias": "data.minority_ratio",
    "generate.bias": "generate.minority_ratio",
    "methods.<name>.bias": "methods.<name>.bias_density (a share) or methods.<name>.bias_k (a count)",
    "methods.<name>.domain": "methods.<name>.domain_density (a share) or methods.<name>.domain_k (a count)",
}
"""Former key -> the keys that replaced it. Looked up only for keys that no longer exist."""


def replacement(name: str) -> str | None:
    """The new name of a dotted key that was renamed; None for all others."""
    first, _, rest = name.partition(".")
    if first != "methods" or "." not in rest:
        return RENAMED.get(name)
    method, _, last = rest.rpartition(".")
    found = RENAMED.get(f"methods.<name>.{last}")
    return found and found.replace("<name>", method)


_EXPECTED = {
    "model_type": "keys and values",
    "dict_type": "keys and values",
    "list_type": "a list",
    "tuple_type": "a list",
    "string_type": "a string",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "path_type": "a folder",
}
"""Expected values in YAML's terms, where pydantic's own message uses Python's."""


def explain(fault: Any, tree: Any, origins: Mapping[Key, str], nearest: Callable[[str], str]) -> str:
    """One line for a validation error: "file:line: key: found, expected".

    Args:
        fault: an item of ``ValidationError.errors()``.
        tree: the validated settings.
        origins: key -> file and line, or flag; () stands for the whole file.
        nearest: a suggestion for an unknown key: "; did you mean train.lr?".
    """
    problem = fault.get("ctx", {}).get("error")
    key = _without_type_names(fault["loc"], tree, missing=fault["type"] == "missing")
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
    if fault["type"] == "too_short":
        expected = f"at least {fault['ctx']['min_length']}"
    found = json.dumps(fault["input"])
    return f"{where}: found {found if len(found) <= 80 else found[:77] + '...'}, expected {expected}"


def _without_type_names(location: Key, tree: Any, *, missing: bool) -> Key:
    """Drops the names of union members, which pydantic puts into a location, and keeps the keys of the tree.

    Args:
        missing: the last part is a key that the tree lacks.
    """
    key: list[str | int] = []
    for part in location[:-1] if missing else location:
        inside = (isinstance(tree, dict) and part in tree) or (isinstance(tree, list) and isinstance(part, int))
        if inside:
            key.append(part)
            tree = tree[part]
    return (*key, location[-1]) if missing else tuple(key)
