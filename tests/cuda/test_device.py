"""What the tests of a GPU share, tried without one."""

import warnings

import pytest
import torch

from .device import extra_bytes, waiting_refused


def test_the_warning_of_the_debug_mode_is_no_error_and_the_mode_does_not_stay(monkeypatch):
    """Under pytest every warning is an error; torch sets the mode before it warns."""
    modes = []

    def set_mode(mode: str) -> None:
        modes.append(mode)
        if mode != "default":
            warnings.warn("Synchronization debug mode is a prototype feature and does not yet detect all", stacklevel=1)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    with waiting_refused():
        assert modes == ["error"]
    with pytest.raises(RuntimeError, match="the host waited"), waiting_refused():
        raise RuntimeError("the host waited")
    assert modes == ["error", "default"] * 2


def test_extra_bytes_are_those_asked_for(monkeypatch):
    """Of an allocator whose blocks are larger."""
    asked = {"current": 100, "peak": 5000}

    def call() -> None:
        asked["peak"] = max(asked["peak"], asked["current"] + 700)

    def statistics() -> dict[str, int]:
        blocks = {f"allocated_bytes.all.{name}": 2**20 for name in asked}
        return blocks | {f"requested_bytes.all.{name}": value for name, value in asked.items()}

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: asked.update(peak=asked["current"]))
    monkeypatch.setattr(torch.cuda, "memory_stats", statistics)
    assert extra_bytes(call) == 700
