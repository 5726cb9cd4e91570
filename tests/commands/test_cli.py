"""The command line as a person meets it: verbs, flags, exit codes, one line for an error, signals."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aimfair.base.errors import AimfairError
from aimfair.commands import cli
from aimfair.commands import run as run_verb
from aimfair.commands.settings import BUNDLED
from aimfair.config import Config, strict_yaml
from aimfair.config import load as config_file
from aimfair.evaluation.compare import compare
from aimfair.export.write import choose
from aimfair.run.directory import Run
from aimfair.stages import preflight
from aimfair.stages.evaluate import experiment
from aimfair.stages.pipeline import STAGES
from aimfair.stages.select import mask_of
from aimfair.training.models import load_model
from tests.report.made_up import made_up_config, made_up_predictions, made_up_splits

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Default directories lie in a temporary one; what main sets in the environment is undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("GOMP_SPINCOUNT", "0")


CHECK = preflight.check


class Stages:
    """Stand-ins for all stages: they note that they ran, or do what the test says. Nothing is checked before them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(preflight, "check", lambda run, **_: None)
        self.ran: list[str] = []
        self.act: dict[str, object] = {}
        for name in STAGES:
            monkeypatch.setitem(STAGES, name, lambda run, name=name: self._run(name, run))
        monkeypatch.setattr(run_verb, "_print_headline", lambda run: print("headline"))
        monkeypatch.setattr(run_verb, "_print_patch", lambda run: print("patch"))

    def _run(self, name: str, run: Run) -> None:
        self.ran.append(name)
        self.config: Config = run.config
        if name in self.act:
            self.act[name](run)  # type: ignore[operator]


@pytest.fixture
def stages(monkeypatch):
    return Stages(monkeypatch)


def aimfair(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "aimfair", *arguments], capture_output=True, text=True, **options)


# -- help --------------------------------------------------------------------------------------------------------------


def test_help_is_quick_and_imports_little():
    probe = (
        "import sys, aimfair.commands.cli\n"
        "try:\n    aimfair.commands.cli.main(['--help'])\n"
        "except SystemExit:\n"
        "    print({'torch', 'pydantic', 'rich', 'yaml', 'numpy', 'jinja2'} & set(sys.modules), file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert result.stderr.strip() == "set()"
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        result = aimfair("--help")
        seconds.append(time.perf_counter() - start)
    assert result.returncode == 0
    for verb in (*STAGES, "run", "demo", "doctor", "config", "engine", "scan"):
        assert f"\n    {verb}" in result.stdout
    assert min(seconds) < 0.5


def test_settings_are_read_without_torch():
    probe = (
        "import sys, aimfair.commands.cli as cli; cli.main(['config', '--config', 'demo'])"
        "; print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "False"


# -- verbs -------------------------------------------------------------------------------------------------------------


def test_data_that_cannot_be_used_are_refused_before_anything_is_generated(stages, capsys, monkeypatch):
    monkeypatch.setattr(preflight, "check", CHECK)
    command = ["run", "--config", "demo", "--quiet", "--data.image_size", "64"]
    assert cli.main(command) == 2
    assert stages.ran == []
    assert "data.image_size: found 64" in capsys.readouterr().err
    run = Run.open(Path("runs/demo"), Run.config_of(Path("runs/demo")))
    run.finish("generate", {}, [])
    run.close()
    assert cli.main(command) == 0, "what is generated already needs no early look"


def test_run_does_every_stage_in_order(stages, capsys):
    assert cli.main(["run", "--config", "demo", "--quiet"]) == 0
    assert stages.ran == list(STAGES)
    assert capsys.readouterr().out == "headline\npatch\n"
    events = [json.loads(line) for line in Path("runs/demo/log.jsonl").read_text().splitlines()]
    assert [event["stage"] for event in events if event["event"] == "stage finished"] == list(STAGES)
    assert all(event["seconds"] >= 0 for event in events if event["event"] == "stage finished")


def test_demo_is_run_with_the_bundled_settings(stages):
    assert cli.main(["demo", "--quiet", "--run", "here", "--seeds", "5"]) == 0
    assert stages.ran == list(STAGES)
    assert Run.config_of(Path("here")) == config_file.load(BUNDLED / "demo.yaml", {"seeds": "5"})


@pytest.mark.parametrize("verb", STAGES)
def test_a_verb_does_its_stage(stages, verb):
    assert cli.main([verb, "--config", "demo", "--quiet", "--tune.trials", "2"]) == 0
    assert stages.ran == [verb]


def test_tuning_without_trials_is_refused(stages, capsys):
    assert cli.main(["tune", "--config", "demo", "--quiet"]) == 2
    assert "tune.trials: found 0" in capsys.readouterr().err
    assert stages.ran == []


def test_an_existing_run_needs_no_config(stages):
    assert cli.main(["prompts", "--config", "demo", "--quiet", "--run", "r", "--train.lr", "0.25"]) == 0
    assert cli.main(["train", "--quiet", "--run", "r"]) == 0
    assert stages.config.train.lr == 0.25
    Path("r/stages").mkdir()
    Path("r/stages/prompts.json").write_text("{}")  # something is finished
    assert cli.main(["train", "--quiet", "--run", "r", "--train.lr", "0.5"]) == 1
    assert cli.main(["train", "--quiet", "--run", "r", "--train.lr", "0.5", "--overwrite"]) == 0
    assert stages.config.train.lr == 0.5


def test_the_directory_is_named_after_the_file(stages):
    Path("mine.yaml").write_text((BUNDLED / "demo.yaml").read_text())
    assert cli.main(["prompts", "--config", "mine.yaml", "--quiet"]) == 0
    assert Path("runs/mine/config.yaml").exists()


def test_threads(stages):
    import torch

    before = torch.get_num_threads()
    try:
        seen = []
        stages.act["prompts"] = lambda _: seen.append(torch.get_num_threads())
        assert cli.main(["prompts", "--config", "demo", "--quiet", "--threads", "1"]) == 0
        assert seen == [1]
    finally:
        torch.set_num_threads(before)


def test_every_verb_does_its_stage_in_the_order_of_the_registry():
    assert list(run_verb.STAGES) == list(STAGES)
    assert list(run_verb.STAGES) == list(cli.VERBS)[: len(STAGES)]


def test_without_a_terminal_every_stage_and_model_has_a_line(stages, capsys):
    def train(run: Run) -> None:
        for _ in run.progress.each([7, 8], lambda seed: f"train {seed}"):
            pass

    stages.act["train"] = train
    assert cli.main(["run", "--config", "demo"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in lines)
    said = [re.sub(r"\d+\.\d s", "T s", line[9:]) for line in lines]
    for number, name in enumerate(STAGES, 1):
        assert f"{name}: stage {number} of {len(STAGES)}" in said
        assert f"{name}: finished in T s, {number} of {len(STAGES)} stages" in said
    assert "train 7: finished, 1 of 2, about T s left" in said
    assert "train 8: finished, 2 of 2 in T s" in said
    assert cli.main(["run", "--config", "demo", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_the_end_says_what_came_out_and_where_to_read_on(capsys):
    config, splits = made_up_config(), made_up_splits()
    density = {name: [0.1] * len(config.seeds) for name in config.methods}
    with Run.open(Path("runs/made-up"), config) as run:
        compare(experiment(config), splits, made_up_predictions(splits, config), density).save(run.results)
        run_verb._print_headline(run)
    sentence, where = capsys.readouterr().out.splitlines()
    assert sentence.startswith("Worst-group accuracy rose from ")
    assert where == "Report: runs/made-up/report.html"


def test_the_end_says_how_small_a_patch_the_tuned_model_is(tiny, tmp_path, capsys):
    path = shutil.copytree(tiny / "run", tmp_path / "run")
    with Run.open(path, Run.config_of(path), quiet=True) as run:
        seed = choose(run).seed
        mask = mask_of(run, seed, "aimfair")
        run_verb._print_patch(run)
        numel = sum(one.numel() for one in load_model(run.baseline(seed)).state_dict().values())
    said = re.match(
        rf"Patch: aimfair changes ([\d,]+) of ([\d,]+) values .* \(seed {seed}\), .*--run (.*) --delta\n",
        capsys.readouterr().out,
    )
    changed, total = (int(said[i].replace(",", "")) for i in (1, 2))
    assert total == numel
    statistics = numel - mask.numel  # of BatchNorm, and its counters
    assert 0.9 * mask.nnz <= changed <= mask.nnz + statistics
    assert Path(said[3]) == path


def test_config_prints_what_a_file_can_hold(capsys):
    assert cli.main(["config", "--config", "demo", "--train.lr=0.5", "--title", "--debug"]) == 2
    assert (
        cli.main(["config", "--config", "demo", "--train.lr=0.5", "--data.majority", "1,0", "--generate.seed", "7"])
        == 0
    )
    tree, _ = strict_yaml.parse(capsys.readouterr().out)
    config = Config.model_validate(tree)
    assert (config.train.lr, config.data.majority, config.generate.seed) == (0.5, [1, 0], 7)


def test_config_lists_the_keys(capsys):
    assert cli.main(["config", "--keys"]) == 0
    assert "train.lr = 0.001" in capsys.readouterr().out


def test_output_that_nobody_reads_is_no_error():
    with subprocess.Popen(
        [sys.executable, "-m", "aimfair", "config", "--keys"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run"], "give --config FILE for a new run, or --run DIR"),
        (["run", "--run", "none"], "there is no run yet; give --config FILE"),
        (
            ["run", "--config", "none"],
            "none of those included: celeba-smiling-male, celeba-smiling-young, celeba-young-male, demo, premise, ",
        ),
        (["run", "--config", "demo", "--train.lrr", "1"], "--train.lrr: unknown key; did you mean train.lr?"),
        (["run", "--config", "demo", "--train.lr"], "--train.lr: expected a value"),
        (["run", "--config", "demo", "--train.lr", "--seeds", "1"], "--train.lr: expected a value"),
        (["run", "--config", "demo", "--train.lr", "1", "2"], "'2': not understood"),
        (["run", "--config", "demo", "extra"], "'extra': not understood"),
        (["run", "--quite", "--config", "demo"], "--quite: unknown flag; did you mean --quiet?"),
        (["run", "--config", "demo", "--seed", "1"], "--seed: unknown flag; did you mean --seeds?"),
        (["demo", "--config=x"], "--config: aimfair demo has no such flag; aimfair demo --help lists them"),
        (["scan", "--config", "demo", "--overwrite"], "--overwrite: aimfair scan has no such flag"),
        (["run", "--config", "demo", "--seeds="], "--seeds: found [], expected at least 1"),
        (["scan", "--config", "demo", "--json", "/dev/null"], "--json /dev/null: found a device, expected a file"),
        (["run", "--conf", "demo"], "--conf: unknown flag; did you mean --config?"),
        (["doctor", "--train.lr", "1"], "--train.lr: doctor takes no settings"),
    ],
)
def test_wrong_command_lines_exit_with_2(arguments, said, capsys):
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert not Path("runs").exists()


@pytest.mark.parametrize("arguments", [[], ["trian"], ["run", "--overwrite=yes"]])
def test_usage_errors_exit_with_2(arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (AimfairError("mask.safetensors: truncated"), "error: mask.safetensors: truncated"),
        (OSError(30, "", "runs/demo/x"), "error: runs/demo/x: read-only file system; choose another with --run"),
        (OSError(30, "", "cache/x"), "error: cache/x: read-only file system; choose another with XDG_CACHE_HOME"),
        (OSError(30, ""), "error: runs: read-only file system; choose another with --run"),
        (RuntimeError("several\n  lines"), "error: RuntimeError: several lines (--debug"),
        (ValueError(), "error: ValueError: no details (--debug"),
    ],
)
def test_errors_are_a_line_and_exit_with_1(stages, capsys, monkeypatch, error, line):
    def fail(_: Run) -> None:
        raise error

    monkeypatch.setenv("XDG_CACHE_HOME", os.path.abspath("cache"))
    stages.act["train"] = fail
    assert cli.main(["run", "--config", "demo", "--quiet"]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(line)
    assert stages.ran == ["prompts", "generate", "train"]
    stopped = json.loads(Path("runs/demo/log.jsonl").read_text().splitlines()[-1])
    assert (stopped["event"], stopped["stage"]) == ("stage stopped", "train")
    assert (stopped["traceback"] is None) == isinstance(error, AimfairError)
    assert cli.main(["run", "--config", "demo", "--quiet", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_error_in_the_log_does_not_hide_the_one_before(stages, capsys):
    def fail(run: Run) -> None:
        run.log._append = fail_again  # type: ignore[method-assign]
        raise AimfairError("the first")

    def fail_again(_: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    stages.act["train"] = fail
    assert cli.main(["run", "--config", "demo", "--quiet"]) == 1
    assert capsys.readouterr().err == "error: the first\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run", "--config", "demo", "--run", "file"], "file: is a file, expected a folder; move it away, or choose"),
        (["run", "--config", "demo", "--run", "file/r"], "file: is a file, expected a folder; move it away, or choose"),
        (["run", "--config", "demo", "--run", "link"], "link: a link to nowhere, which does not exist; remove the"),
        (
            ["run", "--config", "demo", "--run", "/proc/x"],
            "/proc/x: is not there, or cannot be made here; choose another with --run",
        ),
        (["run", "--config", "demo", "--run", "r" * 300], "name too long, most file systems allow 255 bytes; shorten"),
        (["run", "--config", "folder"], "--config folder: is a folder, expected a YAML file, or one of those included"),
        (["export", "--run", "file"], "file: there is no run"),
    ],
)
def test_files_and_folders_in_the_way_are_named(arguments, line, capsys):
    Path("file").touch()
    Path("folder").mkdir()
    Path("link").symlink_to("nowhere")
    assert cli.main([*arguments, "--quiet"]) in (1, 2)
    (said,) = capsys.readouterr().err.splitlines()
    assert line in said
    assert "--debug" not in said


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [(["rnu"], "run"), (["ablate", "densty", "--run", "x"], "density"), (["engine", "biuld"], "build")],
)
def test_a_name_is_suggested_for_a_similar_one(arguments, meant, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert capsys.readouterr().err.rstrip().endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize(
    ("out", "mode", "reason"),
    [
        ("out", "w", "file too large"),
        ("/dev/full", "w", "no space left on device"),
        ("/dev/null", "r", "bad file descriptor"),
    ],
)
def test_output_that_cannot_be_written_is_an_error(out, mode, reason):
    with open(out, mode) as stream:
        result = subprocess.run(
            [sys.executable, "-m", "aimfair", "config", "--config", "demo"],
            stdout=stream,
            stderr=subprocess.PIPE,
            text=True,
            env={key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"},  # it loses the error
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)),
        )
    assert result.returncode == 1
    assert result.stderr == f"error: standard output cannot be written: {reason}\n"


@pytest.mark.parametrize("ignored", [False, True])
def test_ctrl_c_during_the_first_imports_leaves_no_traceback(ignored):
    program = "import os, runpy, signal, sys\n"
    handler = "SIG_IGN" if ignored else "default_int_handler"  # whatever the tests were started with
    program += f"signal.signal(signal.SIGINT, signal.{handler})\n"
    program += "class Finder:\n    @staticmethod\n    def find_spec(name, *_):\n"
    program += "        if name == 'argparse': os.kill(os.getpid(), signal.SIGINT)\n"
    program += "for name in ('argparse', 'aimfair.commands.cli'): sys.modules.pop(name, None)\n"
    program += "sys.meta_path.insert(0, Finder)\n"
    program += "sys.argv[1:] = ['--version']\nrunpy.run_module('aimfair', run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == (0 if ignored else -signal.SIGINT)
    assert result.stderr == ""


@pytest.mark.parametrize("kind", [AimfairError, ImportError])
def test_a_library_that_is_broken_is_named_in_place_of_what_needed_it(stages, capsys, tmp_path, monkeypatch, kind):
    (tmp_path / "torch_companion.py").write_text("raise RuntimeError('operator x::nms does not exist')")
    (tmp_path / "torch_companion-0.3.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: torch-companion\nVersion: 0.3\n"
    (tmp_path / "torch_companion-0.3.dist-info" / "METADATA").write_text(metadata)
    monkeypatch.syspath_prepend(tmp_path)

    def fail(_: Run) -> None:
        try:
            import torch_companion  # noqa: F401
        except Exception as error:
            raise kind("model.config: no classifier: Could not import module 'Net'") from error

    stages.act["train"] = fail
    assert cli.main(["run", "--config", "demo", "--quiet"]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error: torch-companion 0.3 is installed but cannot be imported: operator x::nms does not")


def test_the_real_process_exits_as_main_says():
    result = aimfair("train", "--run", "none")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: none: there is no run yet")


def test_a_run_that_is_open_elsewhere(stages):
    with Run.open(Path("runs/demo"), config_file.load(BUNDLED / "demo.yaml")):
        assert cli.main(["run", "--config", "demo", "--quiet"]) == 1


# -- signals -----------------------------------------------------------------------------------------------------------

_LOOP = """
import sys, time
from aimfair.commands.cli import main
from aimfair.stages.pipeline import STAGES
from aimfair.stages.select import mask_of
from aimfair.training.models import load_model

def run(run):
    print("working", flush=True)
    while True:
        time.sleep(0.01)
        {body}

STAGES["prompts"] = run
sys.exit(main(["prompts", "--config", "demo", "--quiet"]))
"""


@pytest.mark.parametrize(
    ("body", "signals", "code"),
    [
        ("run.interrupt.check()", [signal.SIGINT], 130),
        pytest.param("run.interrupt.check()", [signal.SIGTERM], 143, marks=pytest.mark.slow),
        pytest.param("pass", [signal.SIGINT, signal.SIGINT], 130, marks=pytest.mark.slow),
    ],
)
def test_signals_end_the_work_with_their_code(body, signals, code):
    command = [sys.executable, "-c", _LOOP.format(body=body)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "working\n"
        for number in signals:
            process.send_signal(number)
            time.sleep(0.1)
        assert process.wait(timeout=20) == code
        error = process.stderr.read()
    assert "Traceback" not in error
    assert "error" not in error
    assert "the same command continues" in error.splitlines()[-1]
    with Run.open(Path("runs/demo"), config_file.load(BUNDLED / "demo.yaml")):
        pass  # nobody holds the lock


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_every_verb_says_what_the_same_command_does_after_a_stop(monkeypatch, capsys, number, code):
    """Wherever it is: only long work waits for a point from which it can continue."""
    before = [signal.signal(signal.SIGINT, signal.default_int_handler), signal.signal(signal.SIGTERM, signal.SIG_DFL)]
    continuing = {*STAGES, "run", "demo", "ablate"}  # in a run directory, which keeps the work
    try:
        for verb, (help, _, _) in cli.VERBS.items():
            monkeypatch.setitem(cli.VERBS, verb, (help, lambda *_: signal.raise_signal(number), lambda _: None))
            assert cli.main([verb]) == code
            again = "continues" if verb in continuing else "starts over"
            assert capsys.readouterr().err == f"stopped by {number.name}; the same command {again}\n", verb
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        for one, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(one, handler)


def test_standard_output_may_be_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["config", "--config", "demo"]) == 0
