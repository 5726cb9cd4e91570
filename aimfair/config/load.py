"""Settings from YAML files and command-line flags, and back; every error names its line or flag."""

import difflib
import json
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from aimfair.base.errors import ConfigError
from aimfair.config import Config, strict_yaml, vocabulary
from aimfair.config.errors import Key, explain, replacement

_Part = TypeVar("_Part", bound=BaseModel)


def load(path: Path | None, overrides: Mapping[str, str] | None = None) -> Config:
    """The settings of a file under those of flags: defaults < vocabulary < file < flags.

    A vocabulary (``prompts.vocabulary``) named by a flag replaces the words in the file.

    Args:
        path: a YAML file; None: defaults and flags alone.
        overrides: dotted key -> its value as typed. Strings, choices and paths are taken literally, lists may omit
            their brackets, everything else is YAML; ``null`` is None.

    Raises:
        ConfigError: a line for each fault, beginning with the file and line, or with the flag.
    """
    return load_part(Config, path, overrides)


def load_part(part: type[_Part], path: Path | None, overrides: Mapping[str, str] | None = None) -> _Part:
    """As :func:`load`, for a class with some of the fields of Config; the others may be missing or wrong.

    Raises:
        ConfigError: as :func:`load`.
    """
    tree: dict[str, Any] = {}
    origins: dict[Key, str] = {}
    if path is not None:
        tree, lines = strict_yaml.read(path)
        origins = {(): str(path)} | {key: f"{path}:{line}" for key, line in lines.items()}
    vocabulary.add(tree, origins, (overrides or {}).get("prompts.vocabulary"))
    _put(tree, origins, overrides or {})
    tree = {key: value for key, value in tree.items() if key in part.model_fields or key not in Config.model_fields}
    return _validated(part, tree, origins)


def changed(config: Config, overrides: Mapping[str, str]) -> Config:
    """Settings with others in place of some: as flags would change them.

    Args:
        overrides: as of :func:`load`.

    Raises:
        ConfigError: a line for each fault, beginning with the flag.
    """
    tree: dict[str, Any] = config.model_dump(mode="json")
    origins: dict[Key, str] = {}
    _put(tree, origins, overrides)
    return _validated(Config, tree, origins)


def _put(tree: dict[str, Any], origins: dict[Key, str], overrides: Mapping[str, str]) -> None:
    """Puts flags into the tree, which are then the origin of what they set."""
    for name, text in overrides.items():
        key = tuple(name.split("."))
        vocabulary.put(tree, key, _value_of_flag(name, _annotation(name), text))
        for old in [old for old in origins if old[: len(key)] == key]:
            del origins[old]
        origins[key] = f"--{name}"


def _validated(part: type[_Part], tree: Mapping[str, Any], origins: Mapping[Key, str]) -> _Part:
    try:
        # strict JSON: 1 may be a float and a list a tuple, but "1" and true are not numbers
        return part.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(fault, tree, origins, _nearest) for fault in error.errors())) from error


def require_known(names: Iterable[str]) -> None:
    """Raises ConfigError for the first dotted key that is not a setting."""
    for name in names:
        _annotation(name)


def dump(config: Config) -> str:
    """YAML from which :func:`load` makes an equal Config."""
    return strict_yaml.write(config.model_dump(mode="json"))


def differences(old: Config, new: Config) -> list[str]:
    """The settings that differ, each as "train.lr: 0.01 -> 0.02"."""
    return list(_changes(old.model_dump(mode="json"), new.model_dump(mode="json"), ""))


def keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of the tree with its field, in order; ``methods.<name>.`` stands for the keys of each method."""
    yield from _keys([model], prefix)


def _keys(members: Sequence[type[BaseModel]], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    """Those of each member of a union, a key that several have once, with all the types that it has there."""
    for name in dict.fromkeys(name for member in members for name in member.model_fields):
        fields = [member.model_fields[name] for member in members if name in member.model_fields]
        annotation = _union(field.annotation for field in fields)
        inner = _models_in(annotation)
        if not inner:
            field = copy(fields[0])
            field.annotation = annotation
            yield prefix + name, field
        else:
            free = "<name>." if get_origin(annotation) is dict else ""
            yield from _keys(inner, f"{prefix}{name}.{free}")


def reference() -> str:
    """Every key with its type, default and meaning."""
    entries = []
    for key, field in keys():
        default = "required" if field.is_required() else json.dumps(field.get_default(call_default_factory=True))
        entries.append(f"{key} = {default}    ({_type_name(field)})\n    {field.description}")
    return "\n".join(entries)


def _type_name(field: FieldInfo) -> str:
    """For example "int >= 1 or null"."""
    choices = _alternatives(field.annotation)
    names = ["null" if choice is type(None) else _plain_name(choice) for choice in choices]
    name = " or ".join(
        "URL" if choice is str and Path in choices else one for choice, one in zip(choices, names, strict=True)
    )
    limits = [
        f"{sign} {getattr(limit, name)}"
        for limit in field.metadata
        for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
        if hasattr(limit, name)
    ]
    return ", ".join([name, *limits])


def _changes(old: dict[str, Any], new: dict[str, Any], prefix: str) -> Iterator[str]:
    for name in dict.fromkeys([*old, *new]):
        key = prefix + name
        if name not in old:
            yield f"{key}: new"
        elif name not in new:
            yield f"{key}: gone"
        elif isinstance(old[name], dict) and isinstance(new[name], dict):
            yield from _changes(old[name], new[name], f"{key}.")
        elif old[name] != new[name]:
            yield f"{key}: {json.dumps(old[name])} -> {json.dumps(new[name])}"


# -- flags -------------------------------------------------------------------------------------------------------------


def _annotation(name: str) -> Any:
    """The type of a dotted key.

    Raises:
        ConfigError: there is no such key.
    """
    annotation: Any = Config
    for part in name.split("."):
        fields = [
            choice.model_fields[part]
            for choice in _alternatives(annotation)
            if isinstance(choice, type) and issubclass(choice, BaseModel) and part in choice.model_fields
        ]
        if fields:
            annotation = _union(field.annotation for field in fields)
        elif get_origin(annotation) is dict and part:
            annotation = get_args(annotation)[1]
        elif annotation is not Any:
            raise ConfigError(f"--{name}: unknown key{_nearest(name)}")
    return annotation


def _value_of_flag(name: str, annotation: Any, text: str) -> Any:
    choices = _alternatives(annotation)
    if text == "null" and type(None) in choices:
        return None
    words = [choice for choice in choices if isinstance(choice, str)]
    only_words = bool(words) and all(choice in words or choice is type(None) for choice in choices)
    if only_words or text in words or any(choice in (str, Path) for choice in choices):
        return text
    if any(get_origin(choice) in (list, tuple) for choice in choices) and not text.lstrip().startswith("["):
        text = f"[{text}]"
    try:
        return strict_yaml.parse(text)[0]
    except yaml.YAMLError as error:
        raise ConfigError(f"--{name}: {text!r} is not YAML: {strict_yaml.reason(error)}") from error


def _alternatives(annotation: Any) -> list[Any]:
    """The members of a union, the values of a Literal, or the type itself."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [inner for member in get_args(annotation) for inner in _alternatives(member)]
    return list(get_args(annotation)) if get_origin(annotation) is Literal else [annotation]


def _plain_name(choice: Any) -> str:
    if isinstance(choice, str):
        return choice
    if isinstance(choice, type) and get_origin(choice) is None:
        return "string" if choice is str else "folder" if choice is Path else choice.__name__
    return str(choice).replace("typing.", "").replace("str", "string")


# -- errors ------------------------------------------------------------------------------------------------------------


def _nearest(name: str) -> str:
    """The new name of a renamed key, or what may have been meant by an unknown one."""
    if (new := replacement(name)) is not None:
        return f"; it was renamed to {new}"
    parent, _, last = name.rpartition(".")
    method = name.split(".")[1] if name.count(".") > 1 else "<name>"
    full = [key.replace("<name>", method) for key, _ in keys()]
    known = list(dict.fromkeys(".".join(key.split(".")[:n]) for key in full for n in range(1, key.count(".") + 2)))
    siblings = [key for key in known if key.rpartition(".")[0] == parent]
    near = difflib.get_close_matches(name, siblings, 1, 0.6) or difflib.get_close_matches(name, known, 1, 0.75)
    near = near or [key for key in known if key.rpartition(".")[2] == last]
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; expected one of {', '.join(siblings)}" if siblings else "; aimfair config --keys lists the keys"


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes that a field holds, or holds by name: several for a union."""
    inner = get_args(annotation)[1] if get_origin(annotation) is dict else annotation
    return [one for one in _alternatives(inner) if isinstance(one, type) and issubclass(one, BaseModel)]


def _union(annotations: Iterable[Any]) -> Any:
    """The annotation if all are the same, else one that takes them all."""
    return Union[tuple(dict.fromkeys(annotations))]  # noqa: UP007
