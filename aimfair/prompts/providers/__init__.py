"""The interface of language models that write prompts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class Reply:
    """An unchecked reply.

    Attributes:
        text: untrusted.
        end: "done", or why the text is incomplete.
        tokens_in, tokens_out: of the message and the reply; 0 if unknown.
    """

    text: str
    end: Literal["done", "cut off", "refusal"] = "done"
    tokens_in: int = 0
    tokens_out: int = 0


class ChatModel(Protocol):
    """Answers single messages, without memory of earlier ones; answers need not be deterministic."""

    def ask(self, message: str, schema: Mapping[str, Any]) -> Reply:
        """The reply.

        Args:
            schema: JSON Schema of a good reply, for models that can be held to one; replies may differ from it.

        Raises:
            AimfairError: there is no reply, and a retry would not help.
            Interrupted: by a signal while waiting.
        """
        ...
