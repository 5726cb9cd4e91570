"""YAML without its surprises: the core schema of YAML 1.2, unique string keys, no tags, no aliases.

So ``no`` and ``on`` are strings, ``1e-3`` is a number, and ``010`` and ``12:30`` are not.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from aimfair.base.errors import ConfigError

Lines = dict[tuple[str | int, ...], int]
"""Place in the tree -> line, from 1."""

_CORE_SCHEMA = (  # tag, pattern, characters it may begin with
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
)
_RESOLVERS: dict[str | None, list[tuple[str, re.Pattern[str]]]] = {}
for _tag, _pattern, _first in _CORE_SCHEMA:
    for _character in [*_first, *([""] if _tag == "null" else [])]:
        _RESOLVERS.setdefault(_character, []).append((f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})\\Z")))


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _RESOLVERS

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # a few lines can expand to more values than fit in memory
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise _fault("aliases are not supported; write the value out", event.start_mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _RESOLVERS  # so that it quotes what the loader would misread

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # unescaped, some unprintable characters are read as line breaks
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_str)


def read(path: Path) -> tuple[dict[str, Any], Lines]:
    """The mapping of a file, and the line of every key and item.

    Raises:
        ConfigError: the file cannot be read, or is not a mapping in this subset of YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reading = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read: {reading}") from error
    try:
        tree, lines = parse(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(f"{path}{f':{mark.line + 1}' if mark else ''}: {reason(error)}") from error
    if not isinstance(tree, dict):
        found = "nothing" if tree is None else type(tree).__name__
        raise ConfigError(f"{path}: expected keys and values, found {found}")
    return tree, lines


def parse(text: str) -> tuple[Any, Lines]:
    """The value of a YAML string, and the lines of its parts.

    Raises:
        yaml.YAMLError: it is not in this subset of YAML.
    """
    loader = _Loader(text)
    lines: Lines = {}
    try:
        node = loader.get_single_node()
        return (None if node is None else _value(loader, node, (), lines)), lines
    except (RecursionError, ValueError) as error:  # nested too deep; too many digits
        raise yaml.YAMLError(str(error)) from error
    finally:
        loader.dispose()


def write(value: Any) -> str:
    """YAML that :func:`parse` reads as ``value``."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def reason(error: yaml.YAMLError) -> str:
    """What is wrong, in one line."""
    return str(getattr(error, "problem", None) or error).splitlines()[0]


def _value(loader: _Loader, node: yaml.Node, place: tuple[str | int, ...], lines: Lines) -> Any:
    if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if key_node.tag != "tag:yaml.org,2002:str":
                raise _fault(f"found the key {key!r}, expected a string; put it in quotes", key_node.start_mark)
            if key in result:
                raise _fault(f"duplicate key {key!r}", key_node.start_mark)
            lines[(*place, key)] = key_node.start_mark.line + 1
            result[key] = _value(loader, value_node, (*place, key), lines)
        return result
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        for index, item in enumerate(node.value):
            lines[(*place, index)] = item.start_mark.line + 1
        return [_value(loader, item, (*place, index), lines) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode) and node.tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str"):
        return loader.construct_object(node)
    raise _fault(f"found the tag {node.tag!r}, expected plain values", node.start_mark)


def _fault(problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
