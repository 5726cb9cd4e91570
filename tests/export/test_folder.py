import errno
from pathlib import Path

import pytest

from aimfair.base.errors import AimfairError
from aimfair.base.files import write_json
from aimfair.export import folder
from aimfair.export.folder import MARK, new_folder


def fill(path: Path, text: str, *, overwrite: bool = False) -> None:
    with new_folder(path, overwrite=overwrite) as new:
        (new / "a.txt").write_text(text)
        write_json(new / MARK, {"files": {"a.txt": ""}})


def test_it_appears_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "x" / "out", overwrite=False) as new:
        (new / "a.txt").write_text("1")
        assert not (tmp_path / "x" / "out").exists()
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_ours_stays(tmp_path: Path, overwrite: bool) -> None:
    out = tmp_path / "out"
    fill(out, "1")
    (out / "thesis.tex").write_text("years")
    with pytest.raises(AimfairError, match=r"not an export of aimfair: it contains a\.txt, export\.json, thesis\.tex"):
        fill(out, "2", overwrite=overwrite)
    (tmp_path / "file").write_text("x")
    with pytest.raises(AimfairError, match="is not a folder"):
        fill(tmp_path / "file", "2", overwrite=overwrite)
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(AimfairError, match="is not a folder"):
        fill(tmp_path / "link", "2", overwrite=overwrite)
    assert (out / "a.txt").read_text() == "1"


def test_an_export_is_replaced_only_when_told(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    fill(out, "1")
    with pytest.raises(AimfairError, match="already contains an export"):
        fill(out, "2")
    fill(out, "2", overwrite=True)
    assert (out / "a.txt").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    fill(tmp_path / "out", "1")

    def fail() -> None:
        with new_folder(tmp_path / "out", overwrite=True) as new:
            (new / "a.txt").write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert (tmp_path / "out" / "a.txt").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("names", [(), ("a.txt",), ("source", "a.txt")], ids=["none", "one", "a copy's"])
def test_errors_of_the_system_have_the_final_name(tmp_path: Path, names: tuple[str, ...]) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "out", overwrite=False) as new:
            error = OSError(errno.ENOSPC, "No space left on device")
            if names:
                error.filename = str(new / names[0])
            if len(names) == 2:
                error.filename2 = str(new / names[1])
            raise error

    with pytest.raises(OSError, match="No space left") as caught:
        fail()
    final = tmp_path / "out" / names[-1] if names else tmp_path / "out"
    assert (caught.value.filename, caught.value.filename2) == (str(final), None)


def test_killed_between_the_two_names(tmp_path: Path) -> None:
    """The old export is aside, the new one not yet in place, and parts of another are there."""
    fill(tmp_path / "out", "1")
    (tmp_path / "out").rename(tmp_path / ".out.old")
    (tmp_path / ".out.123.tmp").mkdir()
    (tmp_path / ".out.123.tmp" / "a.txt").write_text("half")
    (tmp_path / ".other.123.tmp").mkdir()
    with pytest.raises(AimfairError, match="already contains an export"):
        fill(tmp_path / "out", "2")
    assert (tmp_path / "out" / "a.txt").read_text() == "1"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.123.tmp", "out"]


def test_killed_before_the_old_one_was_removed(tmp_path: Path) -> None:
    fill(tmp_path / "out", "2")
    fill(tmp_path / ".out.old", "1")
    with pytest.raises(AimfairError, match="already contains an export"):
        fill(tmp_path / "out", "3")
    assert (tmp_path / "out" / "a.txt").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_data_are_on_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(folder, "sync", lambda path: synced.append(path.name))
    fill(tmp_path / "out", "1")
    assert synced[-1] == tmp_path.name
    assert {"a.txt", MARK} < set(synced[:-1])


@pytest.mark.parametrize("name", [".", "", "..", "../here", "/"])
def test_the_current_folder_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    refused = pytest.raises(AimfairError, match="is or contains the current folder; choose another with --to")
    with refused, new_folder(Path(name), overwrite=True):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["here"]


def test_a_relative_name_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with new_folder(Path("../there/."), overwrite=False) as folder:
        (folder / "file").write_text("text")
    assert (tmp_path / "there" / "file").read_text() == "text"


def test_a_folder_that_cannot_be_made_has_the_name_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="name too long") as caught:
        fill(tmp_path / ("x" * 250), "1")
    assert caught.value.filename == str(tmp_path / ("x" * 250))
