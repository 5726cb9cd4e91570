"""Prompts from ``transformers serve`` with a chat model that knows nothing: what it says is refused."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from aimfair.base.errors import AimfairError
from tests.prompts.test_providers import events, tree, write

pytestmark = [
    pytest.mark.slow,  # the server imports transformers again
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn")),
        reason="transformers serve needs: pip install 'transformers[serving]'",
    ),
]

TIMEOUT = 180.0  # seconds until the server must answer


@pytest.fixture(scope="module")
def model(chat_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the setting that the server takes from there alone: to sample."""
    folder = Path(shutil.copytree(chat_folder, tmp_path_factory.mktemp("served") / "tiny"))
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_sample": True}))
    return str(folder)


@pytest.fixture(scope="module")
def address(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", model, "--device", "cpu"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    try:
        end = time.monotonic() + TIMEOUT
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < end, log.read_text()[-2000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(autouse=True)
def environment(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{address}/v1")
    for name in ("OPENAI_API_KEY", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "sent", [{"json_mode": True, "temperature": 1.3}, {"json_mode": False}], ids=["every-field", "fewest-fields"]
)
def test_junk_is_refused_with_counts(model: str, tmp_path: Path, sent: dict[str, object]) -> None:
    with pytest.raises(
        AimfairError,
        match=r"^prompts: 0 of 6 templates after 2 replies \(\d+ tokens in, \d+ out\).*(cut off|not JSON) \d",
    ):
        write(tmp_path, tree(model=model, max_tokens=24, **sent))
    replies = events(tmp_path, "prompts reply")
    assert [(event["accepted"], sum(event["refused"].values())) for event in replies] == [(0, 1)] * 2
    assert all(1 <= event["tokens_out"] <= 24 and event["tokens_in"] > 1000 for event in replies)
    assert events(tmp_path, "prompts waiting") == []
    assert not (tmp_path / "prompts.jsonl").exists()


def test_what_the_server_refuses_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(AimfairError, match=r"prompts\.llm: the endpoint answers 400: .*pinned to") as failed:
        write(tmp_path, tree(model="another"))
    assert "\n" not in str(failed.value)
    assert events(tmp_path, "prompts waiting") == []


def test_fields_that_it_does_not_know_are_refused_by_the_server(address: str, model: str) -> None:
    """Why the client sends no more than it must."""
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2, "guided_json": {}}
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError, match="422") as refused:
        urllib.request.urlopen(request, timeout=60)
    with refused.value:
        assert b"guided_json" in refused.value.read()
