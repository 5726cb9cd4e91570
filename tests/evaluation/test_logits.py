"""The file of logits."""

from pathlib import Path

import numpy as np
import pytest

from aimfair.errors import AimfairError
from aimfair.evaluation.logits import load_logits, save_logits


def test_it_keeps_every_bit_in_stated_room(tmp_path: Path) -> None:
    path = tmp_path / "seeds" / "7" / "logits.safetensors"
    path.parent.mkdir(parents=True)
    generator = np.random.default_rng(0)
    logits = {name: generator.normal(size=(1000, 2)).astype(np.float32) for name in ("biased", "aimfair", "a")}
    save_logits(path, logits)
    first = path.read_bytes()
    assert 0 <= len(first) - 3 * 1000 * 2 * 4 < 1000
    loaded = load_logits(path)
    assert set(loaded) == set(logits)
    assert all(np.array_equal(loaded[name], of) for name, of in logits.items())
    save_logits(path, {name: np.asfortranarray(of) for name, of in logits.items()})
    assert path.read_bytes() == first


def test_missing_and_damaged_files_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "seeds" / "7" / "logits.safetensors"
    with pytest.raises(AimfairError, match=rf"no logits yet; first: aimfair evaluate --run {tmp_path}"):
        load_logits(path)
    path.parent.mkdir(parents=True)
    save_logits(path, {"biased": np.zeros((10, 2), np.float32)})
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(AimfairError, match=r"logits\.safetensors: .*aimfair evaluate"):
        load_logits(path)
