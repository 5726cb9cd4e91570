"""The log: one JSON object per line, whatever was there."""

import json
from pathlib import Path

import pytest

from aimfair.base.log import NOWHERE, Log


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_events_are_readable_at_once(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    log("step", loss=0.5, path=tmp_path, epoch=None)
    (event,) = lines(tmp_path / "log.jsonl")
    assert event.pop("time").endswith("+00:00")
    assert event == {"event": "step", "loss": 0.5, "path": str(tmp_path), "epoch": None}
    log.close()


def test_what_json_has_no_word_for(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    log("step", loss=float("nan"), lr=float("inf"), text="a\nb")
    log.close()
    text = (tmp_path / "log.jsonl").read_text()
    assert text.count("\n") == 1
    assert "NaN" not in text
    (event,) = lines(tmp_path / "log.jsonl")
    assert (event["loss"], event["lr"], event["text"]) == ("nan", "inf", "a\nb")


def test_warnings_are_shown_and_kept(tmp_path):
    shown = []
    log = Log(tmp_path / "log.jsonl", show=shown.append)
    log.warn("group (1, 0) is empty", group=[1, 0])
    log.close()
    assert shown == ["warning: group (1, 0) is empty"]
    assert lines(tmp_path / "log.jsonl")[0]["message"] == "group (1, 0) is empty"


def test_without_a_file_warnings_are_pythons():
    NOWHERE("step")
    with pytest.warns(UserWarning, match="is empty"):
        NOWHERE.warn("group (1, 0) is empty")


@pytest.mark.parametrize(
    ("before", "kept"), [("", 0), ('{"a": 1}\n', 1), ('{"a": 1}\n{"b": ', 1), ('{"b": ', 0)], ids=str
)
def test_goes_on_after_a_line_that_was_cut_off(tmp_path, before, kept):
    path = tmp_path / "log.jsonl"
    path.write_text(before)
    log = Log(path)
    log("next")
    log.close()
    assert len(lines(path)) == kept + 1
    assert lines(path)[-1]["event"] == "next"
