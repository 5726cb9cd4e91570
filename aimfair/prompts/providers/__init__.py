"""Language models that write prompts: the interface that each implements."""

from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class Reply:
    """What came back, not looked at yet.

    Attributes:
        text: all of it; may be anything.
        end: "done", or why the text is not a whole answer.
        tokens_in, tokens_out: of the message and the reply; 0 where nobody counted.
    """

    text: str
    end: Literal["done", "cut off", "refusal"] = "done"
    tokens_in: int = 0
    tokens_out: int = 0


class ChatModel(Protocol):
    """Answers a message. Knows nothing of earlier ones, and may answer the same message in another way."""

    def ask(self, message: str) -> Reply:
        """The reply.

        Raises:
            AimfairError: there is no reply, and asking again now would not bring one.
            Interrupted: a signal came while it waited.
        """
        ...
