"""The file of logits."""

from pathlib import Path

import numpy as np
import pytest

from aimfair.base.errors import AimfairError
from aimfair.evaluation.predictions import load_logits, save_logits


def test_it_keeps_every_bit_in_stated_room(tmp_path: Path) -> None:
    path = tmp_path / "logits" / "full.safetensors"
    logits = np.random.default_rng(0).normal(size=(1000, 2)).astype(np.float32)
    save_logits(path, logits)
    first = path.read_bytes()
    assert 0 <= len(first) - 1000 * 2 * 4 < 1000
    assert np.array_equal(load_logits(path), logits)
    save_logits(path, np.asfortranarray(logits))
    assert path.read_bytes() == first


def test_missing_and_damaged_files_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "logits" / "full.safetensors"
    for damage in (lambda: None, lambda: path.write_bytes(path.read_bytes()[:-4]), lambda: path.write_bytes(b"")):
        damage()
        with pytest.raises(
            AimfairError, match=r"full\.safetensors: no (such file; |usable logits .*)do: aimfair evaluate"
        ):
            load_logits(path)
        save_logits(path, np.zeros((10, 2), np.float32))
