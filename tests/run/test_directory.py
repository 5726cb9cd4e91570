"""A run directory: its lock, its settings, its records, and what a kill at any moment leaves of them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aimfair.base import lease
from aimfair.base.errors import AimfairError, ConfigError
from aimfair.base.files import write_text
from aimfair.base.progress import Progress
from aimfair.config import Config
from aimfair.config import load as config_file
from aimfair.data.settings import DataSettings
from aimfair.run.directory import Run
from aimfair.stages.context import splits_of

from .conftest import DEMO


@pytest.fixture
def run(tmp_path, config):
    with Run.open(tmp_path / "run", config, quiet=True) as run:
        yield run


def changed(**overrides: str) -> Config:
    return config_file.load(DEMO, {key.replace("__", "."): value for key, value in overrides.items()})


def make(run: Run, step: str, inputs: object, text: str = "made") -> Path:
    output = run.path / f"{step.replace('/', '-')}.txt"
    write_text(output, text)
    run.finish(step, inputs, [output])
    return output


def test_groups_that_the_prompts_do_not_have_are_refused(tmp_path, config, monkeypatch):
    """Three colours in the table, words for two inks in the prompts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lines = ["file,split,digit,ink"]
    for number in range(30):
        image = Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8))
        image.save(tmp_path / f"{number}.png")
        split = ("train", "train", "train", "val", "test")[number // 6]
        lines.append(f"{number}.png,{split},{number % 2},{('blue', 'green', 'red')[number % 3]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    data = {"kind": "table", "root": tmp_path, "target": "digit", "protected": "ink"}
    config = config.model_copy(update={"data": DataSettings.model_validate(data)})
    message = r"prompts.protected: found 2 lists .* expected 3, .* 'blue', 'green', 'red'"
    with Run.open(tmp_path / "run", config, quiet=True) as run, pytest.raises(ConfigError, match=message):
        splits_of(run)


# -- opening -----------------------------------------------------------------------------------------------------------


def test_the_settings_are_written_first(tmp_path, config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("some/where")
    Run.open(path, config).close()
    assert config_file.load(path / "config.yaml") == config
    assert Run.config_of(path) == config
    assert Run.config_of(path, {"train.lr": "0.5"}).train.lr == 0.5
    assert Run.config_of(tmp_path / "none") is None


def test_the_same_settings_continue(tmp_path, config):
    Run.open(tmp_path, config).close()
    before = (tmp_path / "config.yaml").stat().st_mtime_ns
    Run.open(tmp_path, config).close()
    assert (tmp_path / "config.yaml").stat().st_mtime_ns == before


def test_a_run_of_which_nothing_is_finished_takes_other_settings(tmp_path, config):
    Run.open(tmp_path, config).close()
    new = changed(train__lr="0.5")
    Run.open(tmp_path, new).close()
    assert Run.config_of(tmp_path) == new


def test_other_settings_are_refused_by_key(tmp_path, config):
    with Run.open(tmp_path, config) as run:
        make(run, "prompts", run.config.prompts)
    with pytest.raises(AimfairError) as caught:
        Run.open(tmp_path, changed(train__lr="0.5", seeds="1,2", methods__new__rule="all"))
    message = str(caught.value)
    lr, seeds = f"train.lr: {config.train.lr} -> 0.5", f"seeds: {config.seeds} -> [1, 2]"
    for part in (lr, seeds, "methods.new: new", "--overwrite"):
        assert part in message
    assert "\n" not in message
    assert Run.config_of(tmp_path) == config
    Run.open(tmp_path, config).close()  # the refusal has let go of the lock


def test_overwrite_takes_the_new_settings_and_keeps_what_they_do_not_touch(tmp_path, config):
    with Run.open(tmp_path, config) as run:
        make(run, "prompts", run.config.prompts)
        make(run, "train/1", run.config.train)
    new = changed(train__lr="0.5")
    with Run.open(tmp_path, new, overwrite=True) as run:
        assert run.is_done("prompts", run.config.prompts)
        assert not run.is_done("train/1", run.config.train)
    assert Run.config_of(tmp_path) == new


def test_damaged_settings_are_refused_or_overwritten(tmp_path, config):
    Run.open(tmp_path, config).close()
    (tmp_path / "config.yaml").write_text("seeds: [1\n")
    with pytest.raises(AimfairError, match=r"config\.yaml:2: "):
        Run.open(tmp_path, config)
    Run.open(tmp_path, config, overwrite=True).close()
    assert Run.config_of(tmp_path) == config


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[: text.index("\n  bins:") - 1], "its last line has no end, it was cut off"),
        (lambda text: text[: text.index("\n  bins:")], "its last line has no end, it was cut off"),
        (lambda text: "", "expected keys and values, found nothing"),
        (lambda text: text[: text.index("methods:")], "methods: missing, and it has no default (and 1 more faults)"),
        (lambda text: "\n", "expected keys and values, found nothing"),
        (lambda text: text.replace("seeds:", "seeds: ["), ""),
    ],
    ids=["in a line", "at the end of a line", "empty", "half", "blank", "not YAML"],
)
def test_damaged_settings_are_one_line_with_the_way_out(tmp_path, config, damage, said):
    Run.open(tmp_path, config).close()
    file = tmp_path / "config.yaml"
    file.write_text(damage(file.read_text()))
    for read in (lambda: Run.config_of(tmp_path), lambda: Run.open(tmp_path, config)):
        with pytest.raises(ConfigError) as caught:
            read()
        (line,) = str(caught.value).splitlines()
        assert line.startswith(f"{file}:")
        assert said in line
        assert line.endswith("; restore the file, or give the settings of the run again with --config FILE --overwrite")
    Run.open(tmp_path, config, overwrite=True).close()
    assert Run.config_of(tmp_path) == config


def test_an_editor_may_leave_out_the_last_end_of_line(tmp_path, config):
    Run.open(tmp_path, config).close()
    file = tmp_path / "config.yaml"
    file.write_text(file.read_text().rstrip("\n"))
    assert Run.config_of(tmp_path) == config
    file.write_text("# mine\n" + file.read_text().replace("  bins: 15\n", ""))
    Run.open(tmp_path, config).close()


def test_a_run_whose_methods_hold_keys_of_other_kinds_says_in_one_line_how_to_continue(tmp_path, config):
    """Older versions wrote the keys of every kind into each method."""
    Run.open(tmp_path, config).close()
    old = (tmp_path / "config.yaml").read_text().replace("kind: tune\n", "kind: tune\n    upweight: 20\n")
    (tmp_path / "config.yaml").write_text(old)
    with pytest.raises(ConfigError) as caught:
        Run.config_of(tmp_path)
    (line,) = str(caught.value).splitlines()
    assert "upweight: not valid for kind 'tune', only for jtt" in line
    assert "edit config.yaml, or start again" in line


def test_a_run_whose_keys_have_been_renamed_says_in_one_line_how_to_continue(tmp_path, config, monkeypatch):
    monkeypatch.setattr("aimfair.config.errors.RENAMED", {"train.rate": "train.lr"})
    Run.open(tmp_path, config).close()
    old = (tmp_path / "config.yaml").read_text().replace("\n  lr: ", "\n  rate: ")
    (tmp_path / "config.yaml").write_text(old)
    stray = tmp_path / ".results.json.4711.tmp"
    stray.touch()
    for open_ in (lambda: Run.config_of(tmp_path, {"seeds": "1"}), lambda: Run.open(tmp_path, config)):
        with pytest.raises(ConfigError) as caught:
            open_()
        (line,) = str(caught.value).splitlines()
        for part in ("config.yaml:", "train.rate: unknown key; it was renamed to train.lr", "edit config.yaml",
                     "--overwrite"):  # fmt: skip
            assert part in line
    assert stray.exists()
    assert (tmp_path / "config.yaml").read_text() == old
    Run.open(tmp_path, config, overwrite=True).close()
    assert Run.config_of(tmp_path) == config


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_of_something_else_is_left_alone(tmp_path, config, overwrite):
    names = ["photo.jpg", ".other.12.tmp"]
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(AimfairError, match=r"not a run directory.*photo\.jpg"):
        Run.open(tmp_path, config, overwrite=overwrite)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_stray_temporaries_are_removed(tmp_path, config):
    Run.open(tmp_path, config).close()
    stray = tmp_path / "seeds" / "100" / ".model.safetensors.4711.tmp"
    stray.parent.mkdir(parents=True)
    stray.touch()
    Run.open(tmp_path, config).close()
    assert not stray.exists()


# -- the lock ----------------------------------------------------------------------------------------------------------

_HOLD = """
import sys
from pathlib import Path
from aimfair.config import load as config_file
from aimfair.run.directory import Run
with Run.open(Path(sys.argv[1]), config_file.load(Path(sys.argv[2]))):
    print("open", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path, config):
    command = [sys.executable, "-c", _HOLD, str(tmp_path), str(DEMO)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(AimfairError, match=f"process {holder.pid} on {os.uname().nodename} is working"):
            Run.open(tmp_path, config, overwrite=True)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with Run.open(tmp_path, config):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()} on {os.uname().nodename}\n"


def test_even_the_same_process_opens_it_once(run, config):
    with pytest.raises(AimfairError, match=f"process {os.getpid()} on .* is working"):
        Run.open(run.path, config)


def test_a_job_of_another_machine_is_named(tmp_path, config, monkeypatch):
    """On a file system whose locks do not reach other machines."""
    monkeypatch.setattr(lease, "is_shared", lambda _: True)
    path = tmp_path / ".lock.lease"
    path.write_text("77 on node3\nanother boot\ntoken\n0\n")
    monkeypatch.setattr(Progress, "say", lambda _, text: path.write_text(path.read_text().replace("0\n", "1\n")))
    with pytest.raises(AimfairError, match=r"process 77 on node3 is working in this run; wait for it, or choose"):
        Run.open(tmp_path, config)


# -- records -----------------------------------------------------------------------------------------------------------


def test_done_means_the_same_inputs(run):
    inputs = {"settings": run.config.train, "seed": 1, "upstream": ["abc"], "folder": run.path}
    assert not run.is_done("train/1", inputs)
    make(run, "train/1", inputs)
    assert run.is_done("train/1", dict(reversed(inputs.items())))
    assert not run.is_done("train/1", {**inputs, "upstream": ["abd"]})


def test_done_means_the_outputs_are_there(run):
    output = make(run, "prompts", 1)
    output.write_text("shorter"[:3])
    assert not run.is_done("prompts", 1)
    output = make(run, "prompts", 1)
    output.unlink()
    assert not run.is_done("prompts", 1)


def test_edited_outputs_of_the_same_size(run):
    output = make(run, "evaluate", 1)
    digest = run.digest_of("evaluate", content=True)
    assert run.is_done("evaluate", 1, content=True)
    whole = output.read_bytes()
    output.write_bytes(whole[::-1])
    assert run.is_done("evaluate", 1)
    with pytest.raises(AimfairError, match="'evaluate' has files that were changed since; do it first: aimfair eval"):
        run.digest_of("evaluate", content=True)
    assert not run.is_done("evaluate", 1, content=True)
    assert make(run, "evaluate", 1).read_bytes() == whole
    assert run.digest_of("evaluate", content=True) == digest


def test_a_record_that_no_longer_holds_is_gone_for_good(run):
    """Else: settings A, then B, killed when its result is half written, then A again, and half of B counts as A's."""
    make(run, "prompts", "A")
    assert not run.is_done("prompts", "B")
    assert not run.is_done("prompts", "A")


def test_a_folder_stands_for_every_file_in_it(run):
    folder = run.baseline(100)
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "a").write_text("a")
    (folder / "b").write_text("b")
    run.finish("train/100", 1, [folder])
    (folder / "more").write_text("later files are nobody's business")
    assert run.is_done("train/100", 1)
    (folder / "inner" / "a").unlink()
    assert not run.is_done("train/100", 1)


def test_the_digest_follows_inputs_and_bytes(run):
    digests = set()
    for inputs, text in (("A", "made"), ("B", "made"), ("A", "MADE")):
        make(run, "prompts", inputs, text)
        digests.add(run.digest_of("prompts"))
    assert len(digests) == 3
    make(run, "prompts", "A", "made")
    assert run.digest_of("prompts") in digests


def test_the_digest_does_not_follow_the_place(tmp_path, config):
    digests = set()
    for name in ("one", "two"):
        with Run.open(tmp_path / name, config) as run:
            make(run, "prompts", config.prompts)
            digests.add(run.digest_of("prompts"))
    assert len(digests) == 1


def test_the_digest_of_what_is_not_finished(run):
    with pytest.raises(AimfairError, match=r"'train/100' is not finished.*aimfair train --run"):
        run.digest_of("train/100")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"outputs": 1, "inputs_digest": "a", "digest": "b"}'])
def test_a_damaged_record_counts_as_none(run, text):
    make(run, "prompts", 1)
    (run.path / "stages" / "prompts.json").write_text(text)
    assert not run.is_done("prompts", 1)


@pytest.mark.parametrize("upstream", [[["a"]], [1, None], "itself", ["gone"], None])
def test_a_record_with_other_steps_upstream_is_damaged_too(run, upstream):
    make(run, "train/1", 1)
    path = run.path / "stages" / "train" / "1.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"upstream": [record["digest"]] if upstream == "itself" else upstream}))
    with pytest.raises(AimfairError, match=r"'train/1' is (not finished|out of date).*; do it first: aimfair train"):
        run.digest_of("train/1")
    assert not run.is_done("train/1", 1), "so that doing it helps"


def test_finishing_without_the_outputs_or_with_odd_inputs_is_a_mistake(run):
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        run.finish("prompts", 1, [run.path / "none.txt"])
    with pytest.raises(TypeError, match="object"):
        run.finish("prompts", object(), [])
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.finish("prompts", float("nan"), [])
    assert not (run.path / "stages" / "prompts.json").exists()


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_paths(run):
    paths = [run.prompts, run.synthetic, run.baseline(1), run.sensitivity(1), run.mask(1, "m"), run.finetuned(1, "m")]
    assert [str(path.relative_to(run.path)) for path in [*paths, run.results, run.report]] == [
        "prompts.jsonl", "synthetic", "seeds/1/baseline", "seeds/1/sensitivity.safetensors",
        "seeds/1/masks/m.safetensors", "seeds/1/finetuned/m", "results.json", "report.html",
    ]  # fmt: skip


def test_the_log_is_in_the_directory(run):
    run.log("something", value=1)
    (event,) = map(json.loads, (run.path / "log.jsonl").read_text().splitlines())
    assert event["event"] == "something"


@pytest.mark.slow
def test_killed_at_every_point(tmp_path):
    """kill -9 before each call that touches the disk; see ``crash_points``."""
    command = [sys.executable, "-m", "tests.run.crash_points", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 40


def test_a_result_of_what_was_made_again_is_refused(tmp_path, config):
    run = Run.open(tmp_path, config)
    made = [tmp_path / name for name in ("first.txt", "second.txt", "third.txt")]

    def do(step: str, path: Path, text: str, *upstream: str) -> None:
        path.write_text(text)
        run.finish(step, {"upstream": [run.digest_of(name) for name in upstream]}, [path])

    do("train/1", made[0], "a")
    do("sensitivity/1", made[1], "b", "train/1")
    do("select/1/x", made[2], "c", "sensitivity/1")
    assert run.digest_of("select/1/x")
    do("train/1", made[0], "another")
    for step, verb in (("sensitivity/1", "sensitivity"), ("select/1/x", "select")):
        with pytest.raises(AimfairError, match=rf"step '{step}' is out of date: .*; do it first: aimfair {verb} "):
            run.digest_of(step)
    do("sensitivity/1", made[1], "b", "train/1")
    made[1].unlink()
    with pytest.raises(AimfairError, match="step 'sensitivity/1' has lost files"):
        run.digest_of("sensitivity/1")
    run.close()
