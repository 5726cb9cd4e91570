"""An endpoint on loopback that speaks OpenAI's protocol, and does what a test says."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = str | None | Callable[[list[dict[str, Any]]], str]


@dataclass
class Act:
    """How the server meets one request.

    Attributes:
        content: text of the reply, or what makes it of the briefs in the request.
        body: instead of a completion: these bytes.
        delay: seconds before the answer; trickle: between its bytes.
        cut: ends the connection before the last byte.
        padding: spaces after the answer.
        message: more of the completion's message.
    """

    content: Answer = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    trickle: float = 0.0
    cut: bool = False
    padding: int = 0
    finish: str = "stop"
    message: dict[str, Any] = field(default_factory=dict)
    body: bytes | None = None


class ChatServer(ThreadingHTTPServer):
    """Meets request k as ``acts[k]`` says, and all after the last as the last does.

    Attributes:
        requests: bodies; keys: headers "Authorization"; times: of every request.
        connections: that are open.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.acts: list[Act] = []
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.times: list[float] = []
        self.connections = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


@contextmanager
def serving() -> Iterator[ChatServer]:
    with ChatServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def briefs_in(message: str) -> list[dict[str, Any]]:
    """The templates that a message asks for."""
    found = [json.loads(line) for line in message.splitlines() if line.startswith('[{"number"')]
    assert len(found) == 1
    return found[0]


def good(briefs: list[dict[str, Any]]) -> str:
    """A right answer, each template with words of its own."""
    return json.dumps({"templates": [template(brief) for brief in briefs]})


def template(brief: dict[str, Any], text: str = "") -> dict[str, Any]:
    number = brief["number"]
    words = " ".join(f"{word}{number}" for word in ("old", "warm", "far"))
    values = {name: f"{value} {name}{number}" for name, value in brief["contexts"].items()}
    text = text or f"a {{target}} in {{protected}}, {words}, {', '.join(values.values())}"
    return {"number": number, "text": text, "contexts": values}


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer
    protocol_version = "HTTP/1.1"  # connections are kept, as most servers do

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def finish(self) -> None:
        super().finish()
        self.server.connections -= 1

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        act = server.acts[min(len(server.requests), len(server.acts) - 1)]
        server.requests.append(body)
        server.keys.append(self.headers["Authorization"])
        server.times.append(time.monotonic())
        time.sleep(act.delay)
        content = act.content(briefs_in(body["messages"][0]["content"])) if callable(act.content) else act.content
        completion = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "finish_reason": act.finish,
                    "message": {"role": "assistant", "content": content, **act.message},
                }
            ],
            "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
        }
        if act.status != 200:
            completion = {"error": {"message": content, "type": "test", "code": act.message.get("code")}}
        data = (act.body if act.body is not None else json.dumps(completion).encode()) + b" " * act.padding
        try:
            self.send_response(act.status)
            for name, value in {"Content-Type": "application/json", **act.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            for piece in [bytes([byte]) for byte in data] if act.trickle else [data[:-1] if act.cut else data]:
                time.sleep(act.trickle)
                self.wfile.write(piece)
            self.close_connection |= act.cut
        except (BrokenPipeError, ConnectionResetError):  # who asked has gone
            pass

    def log_message(self, *_: Any) -> None:
        pass
