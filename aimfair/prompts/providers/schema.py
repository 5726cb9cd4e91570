"""The JSON schema of the templates that a message asks for: servers that honour it make no other answer possible."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aimfair.prompts.providers.templates import Brief

Schema = dict[str, Any]

_PLAIN = r'[^{}<>\[\]|\\`"\r\n\t]'  # what a template may hold besides its slots, and JSON without an escape
_BETWEEN = (rf"\{{target\}}{_PLAIN}*\{{protected\}}", rf"\{{protected\}}{_PLAIN}*\{{target\}}")
_TEXT = f"^{_PLAIN}*({'|'.join(_BETWEEN)}){_PLAIN}*$"  # each slot once


def schema_of(briefs: Sequence["Brief"]) -> Schema:
    """A template for every brief, with its contexts; in the part of JSON Schema that strict servers know."""
    kinds: dict[tuple[str, ...], list[int]] = {}
    for brief in briefs:
        kinds.setdefault(tuple(brief.contexts), []).append(brief.number)
    templates = [
        _object(
            number={"type": "integer", "enum": numbers},
            text={"type": "string", "pattern": _TEXT},
            contexts=_object(**{name: {"type": "string"} for name in names}),
        )
        for names, numbers in kinds.items()
    ]
    several = {"anyOf": templates} if len(templates) > 1 else templates[0]
    return _object(templates={"type": "array", "items": several, "minItems": len(briefs), "maxItems": len(briefs)})


def _object(**fields: Schema) -> Schema:
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
