import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aimfair.base.interrupt import Interrupt, Interrupted
from aimfair.data import cache
from aimfair.data import decode as decode_module
from aimfair.data.cache import Decoded, decode_files, default_folder
from aimfair.data.decode import decode
from tests.data.conftest import Warnings, save_image

FILES = [f"{number}.png" for number in range(40)]
CAP = 10_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, file in enumerate(FILES):
        save_image(tmp_path / "images" / file, number)
    return tmp_path / "images"


def load(root: Path, files: list[str] = FILES, size: int = 8, **options: object) -> Decoded:
    return decode_files(root, files, size, CAP, **options)  # type: ignore[arg-type]


def refuse_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: object) -> None:
        pytest.fail("decoded again")

    monkeypatch.setattr(cache, "_build", build)


def test_images_are_those_of_decode_in_the_order_of_the_files(root: Path) -> None:
    files = FILES[::-1]
    decoded = load(root, files)
    np.testing.assert_array_equal(decoded.images, np.stack([decode(root / file, 8, CAP) for file in files]))
    assert decoded.kept.tolist() == list(range(40))
    assert len(set(decoded.digests)) == 40
    assert decoded.rejected == ()


def test_the_second_time_nothing_is_decoded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(root)
    refuse_to_build(monkeypatch)
    second = load(root)
    np.testing.assert_array_equal(first.images, second.images)
    assert first.digests == second.digests


def test_changed_files_and_sizes_are_decoded_again(root: Path) -> None:
    before = load(root).images.copy()
    save_image(root / FILES[3], 1000)
    after = load(root).images
    assert (before[3] != after[3]).any()
    np.testing.assert_array_equal(np.delete(before, 3, 0), np.delete(after, 3, 0))
    assert load(root, size=4).images.shape == (40, 4, 4, 3)


def test_images_that_are_stretched_are_others(root: Path) -> None:
    cropped, stretched = load(root).images, load(root, fit="stretch").images
    assert (cropped != stretched).any()
    np.testing.assert_array_equal(stretched[5], decode(root / FILES[5], 8, CAP, "stretch"))
    np.testing.assert_array_equal(load(root).images, cropped)


def test_bad_files_are_left_out_with_their_reasons_also_the_second_time(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / FILES[0]).write_bytes(b"")
    (root / FILES[7]).unlink()
    for _ in range(2):
        decoded = load(root)
        assert [(name, reason) for name, reason in decoded.rejected] == [
            (FILES[0], "empty file"),
            (FILES[7], "no such file"),
        ]
        assert decoded.kept.tolist() == [number for number in range(40) if number not in (0, 7)]
        np.testing.assert_array_equal(decoded.images[5], decode(root / FILES[6], 8, CAP))
        refuse_to_build(monkeypatch)


def test_no_image_at_all(root: Path) -> None:
    decoded = load(root, ["missing.png"])
    assert decoded.images.shape == (0, 8, 8, 3)
    assert [rejected.name for rejected in decoded.rejected] == ["missing.png"]


def test_the_map_is_read_only(root: Path) -> None:
    """A map that can be written to needs as much memory as the file is large, or it cannot be opened."""
    images = load(root).images
    assert not images.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        images[:] = 0


def test_a_map_that_cannot_be_opened_is_an_error_that_names_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(root)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(np, "memmap", refuse)
    with pytest.raises(OSError, match=r"Cannot allocate memory: .*\.rgb"):
        load(root)


def test_a_damaged_entry_is_made_again(root: Path, log: Warnings) -> None:
    expected = load(root).images.copy()
    (pixels,) = default_folder().glob("*.rgb")
    os.truncate(pixels, 100)
    np.testing.assert_array_equal(load(root, log=log).images, expected)
    (index,) = default_folder().glob("*.json")
    index.write_text(index.read_text()[:50])
    np.testing.assert_array_equal(load(root, log=log).images, expected)


def test_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache_home: Path) -> None:
    assert default_folder() == cache_home / "aimfair" / "images"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_folder() == tmp_path / ".cache" / "aimfair" / "images"


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are decoded from now on."""
    names: list[str] = []
    original = decode_module.read_rgb

    def read_rgb(path: Path, max_pixels: int) -> Image.Image:
        names.append(path.name)
        return original(path, max_pixels)

    monkeypatch.setattr(decode_module, "read_rgb", read_rgb)
    return names


def stop_after(root: Path, files: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decodes so many files and is stopped."""
    calls = iter(range(files - 1))

    def check() -> None:
        if next(calls, None) is None:
            raise Interrupted(signal.SIGTERM)

    interrupt = Interrupt()
    monkeypatch.setattr(interrupt, "check", check)
    with pytest.raises(Interrupted):
        load(root, interrupt=interrupt)


def test_after_a_stop_it_goes_on_from_there(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / FILES[2]).write_bytes(b"")
    (root / FILES[38]).unlink()
    expected = load(root, folder=tmp_path / "whole")
    monkeypatch.setattr(cache, "_STEP", 8)
    stop_after(root, 30, monkeypatch)
    assert not list(default_folder().glob("*.rgb"))
    names = count_reads(monkeypatch)
    decoded = load(root)
    assert sorted(names) == sorted(FILES[24:])
    np.testing.assert_array_equal(decoded.images, expected.images)
    assert (decoded.digests, decoded.rejected) == (expected.digests, expected.rejected)
    assert decoded.kept.tolist() == expected.kept.tolist()
    assert sorted(path.suffix for path in default_folder().iterdir()) == ["", ".json", ".rgb"]


def test_killed_before_the_pixels_have_their_name(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load(root, folder=tmp_path / "whole")
    original = os.replace

    def killed(source: Path, target: Path) -> None:
        if str(target).endswith(".rgb"):
            raise KeyboardInterrupt
        original(source, target)

    with monkeypatch.context() as kill:
        kill.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            load(root)
    names = count_reads(monkeypatch)
    np.testing.assert_array_equal(load(root).images, expected.images)
    assert names == []


@pytest.mark.parametrize(
    ("spoil", "kept"),
    [
        (lambda part, journal: os.truncate(journal, journal.stat().st_size - 5), 16),
        (lambda part, journal: os.truncate(part, 17 * 8 * 8 * 3 + 1), 16),
        (lambda part, journal: part.unlink(), 0),
        (lambda part, journal: journal.unlink(), 0),
        (lambda part, journal: journal.write_text(journal.read_text().replace("checksums", "x")), 0),
        (lambda part, journal: journal.write_text(re.sub(r', "checksums": [^}]*', "", journal.read_text())), 0),
    ],
    ids=[
        "half a line",
        "pixels that did not reach the disk",
        "no pixels",
        "no journal",
        "other fields",
        "no checksums",
    ],
)
def test_a_damaged_part_is_used_up_to_the_damage(
    root: Path, spoil: Callable[[Path, Path], None], kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load(root, folder=tmp_path / "whole")
    monkeypatch.setattr(cache, "_STEP", 8)
    stop_after(root, 30, monkeypatch)
    ((part,), (journal,)) = (default_folder().glob(f"*{suffix}") for suffix in (".part", ".jsonl"))
    spoil(part, journal)
    names = count_reads(monkeypatch)
    np.testing.assert_array_equal(load(root).images, expected.images)
    assert sorted(names) == sorted(FILES[kept:])


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def without_checksums(path: Path) -> None:
    index = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in index.items() if key != "checksums"}))


@pytest.mark.parametrize(
    ("suffix", "spoil"),
    [
        (".rgb", lambda path: flip(path, 0)),
        (".rgb", lambda path: flip(path, 20 * 8 * 8 * 3 + 5)),
        (".rgb", lambda path: flip(path, -1)),
        (".rgb", lambda path: path.write_bytes(bytes(path.stat().st_size))),
        (".rgb", lambda path: path.write_bytes(path.read_bytes()[:-1])),
        (".json", without_checksums),
        (".json", lambda path: path.write_text(path.read_text().replace('"checksums": [', '"checksums": [], "x": ['))),
        (".json", lambda path: path.write_bytes(b"\xff\x00")),
    ],
    ids=["first byte", "a byte", "last byte", "zeros", "shorter", "no checksums", "too few checksums", "not JSON"],
)
def test_a_damaged_entry_is_decoded_again(
    root: Path, suffix: str, spoil: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch, log: Warnings
) -> None:
    monkeypatch.setattr(cache, "_STEP", 8)
    expected = load(root).images.copy()
    (path,) = default_folder().glob(f"*{suffix}")
    spoil(path)
    np.testing.assert_array_equal(load(root, log=log).images, expected)
    (said,) = log.messages
    assert said.endswith(".rgb: damaged, or of an earlier version; decoding again")
    refuse_to_build(monkeypatch)
    np.testing.assert_array_equal(load(root).images, expected)


def test_a_full_disk_is_an_error_that_says_how_much_is_needed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: .*\.jsonl") as caught:
            load(root)
    assert caught.value.__notes__ == ["0.01 MB needed"]
    assert [path.name for path in default_folder().iterdir()] == ["lock"]


SCRIPT = """
import sys, time
from pathlib import Path
from aimfair.data import decode
slowly = decode.read_rgb
def read_rgb(*arguments):
    print("decoding", flush=True)
    time.sleep(0.01)
    return slowly(*arguments)
decode.read_rgb = read_rgb
from aimfair.data import cache
cache._STEP = 4
from aimfair.data.cache import decode_files
print("ready", flush=True)
root, folder = map(Path, sys.argv[1:])
decode_files(root, [f"{n}.png" for n in range(40)], 8, 10_000, folder=folder)
"""


def start(root: Path, folder: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, root, folder], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def test_killed_at_any_moment(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "decoded"
    parts = []
    for delay in (0.02, 0.1, 0.1):
        with start(root, folder) as process:
            time.sleep(delay)
            process.kill()
        parts += list(folder.glob("*.part"))
    assert parts  # else none was killed while decoding
    np.testing.assert_array_equal(load(root, folder=folder).images, load(root).images)
    assert sorted(path.suffix for path in folder.iterdir()) == ["", ".json", ".rgb"]


def test_two_processes_decode_once(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "decoded"
    with start(root, folder) as first, start(root, folder) as second:
        outputs = first.communicate()[0], second.communicate()[0]
    assert (first.returncode, second.returncode) == (0, 0)
    assert sorted(output.count(b"decoding") for output in outputs) == [0, 40]
    np.testing.assert_array_equal(load(root, folder=folder).images, load(root).images)
