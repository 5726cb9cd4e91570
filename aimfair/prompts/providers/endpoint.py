"""A model behind an OpenAI-compatible endpoint; the only importer of the openai client.

URL and key come from the environment, OPENAI_BASE_URL and OPENAI_API_KEY. The key never appears in an error, a log or a
reply.
"""

import json
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.libraries import optional
from aimfair.base.log import NOWHERE, Log
from aimfair.prompts.providers import Reply
from aimfair.prompts.settings import LanguageModelSettings

if TYPE_CHECKING:
    import openai

_NO_KEY = "none"  # the client requires one, self-hosted servers rarely do
_SHORTEST_SECRET = 8  # a shorter key is a placeholder, which may occur in a reply
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0  # seconds
_AGAIN = (408, 409, 429)  # and 5xx
_LEAVE_OUT = {
    "max_tokens": "--prompts.llm.max_tokens null",
    "temperature": "--prompts.llm.temperature null",
}
"""Optional field of a request -> the setting that omits it."""
_GRACE = 0.5  # seconds that an answer in flight gets after a signal: it was paid for
_REFUSED = (400, 415, 422, 500, 501)  # by servers that know no schemas, or not this one
_OF_FORM = re.compile(r"response_format|json_object|schema|grammar|structured|guided", re.IGNORECASE)
_WITHOUT = {
    "json_schema": "a schema, as --prompts.llm.json_schema false",
    "json_object": "response_format, as --prompts.llm.json_mode false",
}
"""Form of an answer that an endpoint refuses -> what is left out, and the setting that leaves it out."""
_LONGEST_ANSWER = 8_000_000  # bytes
_TICK = 0.1  # seconds between checks of the interrupt


class Endpoint:
    """Answers through an endpoint, with retries: exponential backoff with jitter, or Retry-After.

    Args:
        settings: ``prompts.llm``.

    Raises:
        AimfairError: the client is not installed, or neither key nor URL is set.
    """

    def __init__(self, settings: LanguageModelSettings, *, log: Log = NOWHERE, interrupt: Interrupt = NEVER):
        with optional("prompts.provider openai", "openai"):
            import openai
        self._openai, self._settings, self._log, self._interrupt = openai, settings, log, interrupt
        self._forms = ["json_schema", "json_object"] if settings.json_schema else ["json_object"]
        self._forms = self._forms if settings.json_mode else []  # to ask for, until the endpoint refuses the first
        self._key = os.environ.get("OPENAI_API_KEY", "").strip()
        address = os.environ.get("OPENAI_BASE_URL", "").strip()
        if not self._key and not address:
            raise AimfairError(
                "prompts.provider openai: neither OPENAI_API_KEY nor OPENAI_BASE_URL is set in the environment; set "
                "the key, or the URL of your own server, such as http://localhost:8000/v1"
            )
        if not (self._key.isascii() and self._key.isprintable()):
            raise AimfairError("OPENAI_API_KEY: found invalid characters, expected printable ASCII")
        try:
            if address and not address.startswith(("http://", "https://")):
                raise ValueError
            self._client = openai.OpenAI(
                api_key=self._key or _NO_KEY, base_url=address or None, timeout=settings.timeout, max_retries=0
            )
        except Exception:  # its message has the whole URL, which may contain a password
            raise AimfairError("OPENAI_BASE_URL: expected a URL such as http://localhost:8000/v1") from None

    def ask(self, message: str, schema: Mapping[str, Any]) -> Reply:
        """See :class:`ChatModel`."""
        wait, attempt = _FIRST_WAIT, 0
        while attempt <= self._settings.retries:
            self._interrupt.check()
            try:
                return self._reply(self._send(message, schema))
            except self._openai.OpenAIError as error:
                fault = self._fault(error)
                if self._refuses_form(error):
                    without = _WITHOUT[self._forms.pop(0)]
                    self._log.tell(f"prompts.llm: {fault}; from now on without {without} does so from the start")
                    continue
                told = self._told_to_wait(error)
                if not self._may_pass(error):
                    raise AimfairError(f"prompts.llm: {fault}") from None  # the cause may contain the key
                if told is not None and told > self._settings.max_wait:
                    raise AimfairError(
                        f"prompts.llm: {fault}; it asks to wait {told:.0f} s, prompts.llm.max_wait is "
                        f"{self._settings.max_wait:g}; accepted prompts are kept, so run the same command again later"
                    ) from None
            if attempt < self._settings.retries:
                seconds = told if told is not None else wait * random.uniform(0.75, 1.25)
                self._log("prompts waiting", fault=fault, seconds=round(seconds, 3), attempt=attempt + 1)
                self._sleep(seconds)
                wait = min(2 * wait, _LONGEST_WAIT)
            attempt += 1
        raise AimfairError(
            f"prompts.llm: {fault}, {self._settings.retries + 1} times (prompts.llm.retries); accepted prompts are "
            "kept, so run the same command again later"
        )

    def close(self) -> None:
        """Closes all connections."""
        self._client.close()

    def _send(self, message: str, schema: Mapping[str, Any]) -> Any:
        """The parsed body of the answer; None if it is not JSON, or too long.

        Another thread waits for it, because a signal does not end a wait for the network: it is left alone after a
        signal and :data:`_GRACE`.
        """
        given: dict[str, Any] = {}
        if self._settings.temperature is not None:
            given["temperature"] = self._settings.temperature
        if self._settings.max_tokens is not None:
            given["max_tokens"] = self._settings.max_tokens
        if self._forms:
            given["response_format"] = {"type": self._forms[0]}
            if self._forms[0] == "json_schema":
                form = {"name": "templates", "strict": True, "schema": schema}
                given["response_format"]["json_schema"] = form
        answer = _Answer(lambda: self._receive(message, given))
        left = math.inf
        while not answer.wait(_TICK):
            if self._interrupt.requested:
                left = min(left, time.monotonic() + _GRACE)
            if time.monotonic() >= left:
                self._interrupt.check()
        body = answer.result()
        try:
            return None if body is None else json.loads(body)
        except (ValueError, RecursionError):
            return None

    def _receive(self, message: str, given: Mapping[str, Any]) -> bytes | None:
        """The body; None if it is too long. The client's own timeout restarts with each chunk."""
        end = time.monotonic() + self._settings.timeout
        with self._client.chat.completions.with_streaming_response.create(
            model=self._settings.model, messages=[{"role": "user", "content": message}], **given
        ) as response:
            body, pieces = bytearray(), response.iter_bytes()
            while True:
                try:
                    piece = next(pieces, None)
                except Exception:  # from the HTTP client, which this file does not import
                    late = time.monotonic() >= end
                    kind = self._openai.APITimeoutError if late else self._openai.APIConnectionError
                    raise kind(request=response.http_request) from None
                if piece is None:
                    return bytes(body)
                body += piece
                if time.monotonic() >= end:
                    raise self._openai.APITimeoutError(request=response.http_request)
                if len(body) > _LONGEST_ANSWER:
                    return None

    def _reply(self, body: Any) -> Reply:
        tokens = [_within(body, "usage", name) for name in ("prompt_tokens", "completion_tokens")]
        tokens_in, tokens_out = (count if isinstance(count, int) else 0 for count in tokens)
        text = _within(body, "choices", 0, "message", "content")
        finish = _within(body, "choices", 0, "finish_reason")
        refused = bool(_within(body, "choices", 0, "message", "refusal")) or finish == "content_filter"
        return Reply(
            text=self._without_key(text) if isinstance(text, str) else "",
            end="refusal" if refused else "cut off" if finish == "length" else "done",
            tokens_in=tokens_in,
            tokens_out=tokens_out,
        )

    def _may_pass(self, error: "openai.OpenAIError") -> bool:
        """Whether a retry may succeed."""
        if isinstance(error, self._openai.APIStatusError):
            spent = error.code == "insufficient_quota"  # a 429 that a retry does not fix
            return not spent and (error.status_code in _AGAIN or error.status_code >= 500)
        return isinstance(error, self._openai.APIConnectionError)  # including timeouts

    def _refuses_form(self, error: "openai.OpenAIError") -> bool:
        """Whether the form of the answer is what the endpoint does not take."""
        return (
            bool(self._forms)
            and isinstance(error, self._openai.APIStatusError)
            and error.status_code in _REFUSED
            and _OF_FORM.search(self._said(error)) is not None
        )

    def _fault(self, error: "openai.OpenAIError") -> str:
        if isinstance(error, self._openai.APITimeoutError):
            return f"no answer within {self._settings.timeout:g} s (prompts.llm.timeout)"
        if isinstance(error, self._openai.APIStatusError):
            said = self._said(error)
            return f"the endpoint answers {error.status_code}: {said[:300]}{self._remedy(said)}"
        if isinstance(error, self._openai.APIConnectionError):
            return "the endpoint cannot be reached; check OPENAI_BASE_URL, and that the server is running"
        return f"the endpoint's answer cannot be read ({type(error).__name__})"

    def _said(self, error: "openai.APIStatusError") -> str:
        """The server's reason, on one line: "message" as in OpenAI's API, or "detail" as in FastAPI."""
        body: Any = error.body
        if isinstance(body, dict):
            body = body.get("message") or body.get("detail") or body
        text = " ".join(self._without_key(body if isinstance(body, str) else json.dumps(body)).split())
        return "".join(c if c.isprintable() else "?" for c in text)

    def _remedy(self, said: str) -> str:
        """The setting that omits the field of the request that the server complains about."""
        for field, setting in _LEAVE_OUT.items():
            if field in said:
                return f"; {setting} omits it"
        return ""

    def _told_to_wait(self, error: "openai.OpenAIError") -> float | None:
        """Seconds from the header Retry-After, a number or a date; None without it."""
        if not isinstance(error, self._openai.APIStatusError):
            return None
        header = error.response.headers.get("retry-after", "").strip()
        if header.isascii() and header.isdigit():
            return float(header)
        try:
            when = parsedate_to_datetime(header)
        except (ValueError, TypeError, OverflowError):
            return None
        return max((when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds(), 0.0)

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._interrupt.check()
            time.sleep(min(left, _TICK))

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if len(self._key) >= _SHORTEST_SECRET else text


class _Answer:
    """The result of ``work``, done by a thread that does not keep the process alive."""

    def __init__(self, work: Callable[[], bytes | None]):
        self._work, self._done = work, threading.Event()
        self._body: bytes | None = None
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="endpoint", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Whether it is there."""
        return self._done.wait(seconds)

    def result(self) -> bytes | None:
        """Once it is there; raises what ``work`` raised."""
        if self._error is not None:
            raise self._error
        return self._body

    def _run(self) -> None:
        try:
            self._body = self._work()
        except BaseException as error:
            self._error = error
        self._done.set()


def _within(value: Any, *path: str | int) -> Any:
    """The value at a path of keys and indices; None if there is none."""
    for part in path:
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            return None
    return value
