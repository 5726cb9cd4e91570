"""Ray itself: a run on a cluster that loses a machine, one that is stopped and killed, and what the terminal shows."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from aimfair.base.errors import AimfairError, ConfigError
from aimfair.base.interrupt import Interrupted
from aimfair.cluster import ray_pool as module
from aimfair.cluster.pool import Call, Ended, Pool, Told
from aimfair.cluster.ray_pool import _call, _patient, cpus_of_call, ray_pool
from aimfair.cluster.settings import ClusterSettings
from aimfair.run.directory import Run
from tests.cluster.test_schedule import without_times
from tests.tiny_run import METHODS, settings

SOME = ("full", "aimfair", "jtt")
WAIT = 900
PARTS = ("seeds", "synthetic", "tuning", "ablations")


def works(send: Callable[[tuple[object, ...]], None]) -> int:
    send(("say", "working"))
    return os.getpid()


def fails(_: object) -> None:
    raise FileNotFoundError(2, "No such file or directory", "/missing")


def refuses(_: object) -> None:
    raise ConfigError("seeds: found 0")


def dies(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def waits(send: Callable[[tuple[object, ...]], None]) -> None:
    send(("say", "waiting"))
    for _ in range(600):
        time.sleep(0.1)


class Slow:
    """A function that is slow to load, as where torch has to be imported; ``number``: of a signal that comes then."""

    def __init__(self, folder: Path, number: int = 0):
        self._folder, self._number = folder, number

    def __reduce__(self) -> tuple[object, ...]:
        return load, (self._folder, self._number)


def load(folder: Path, number: int) -> object:
    (folder / "begun").touch()
    if number:
        signal.raise_signal(number)
    for _ in range(1 if number else 30):
        time.sleep(0.1)
    (folder / "loaded").touch()
    return works


@pytest.mark.slow
def test_ends_of_calls_come_back_as_they_were(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    capfd.readouterr()
    with ray_pool(None, ClusterSettings(cpus=1), threads=1, uses_gpu=True, warn=lambda _: None) as pool:
        for function in (works, fails, refuses, dies):
            pool.submit(Call(function.__name__, function))
        found: list[Told | Ended] = []
        while sum(isinstance(one, Ended) for one in found) < 4:
            found += pool.wait(0.5)
        ends = {one.name: one for one in found if isinstance(one, Ended)}
        assert isinstance(ends["works"].result, int)
        assert [one.message for one in found if isinstance(one, Told)] == [("say", "working")]
        failure, refusal = ends["fails"].error, ends["refuses"].error
        assert isinstance(failure, FileNotFoundError)
        assert failure.filename == "/missing"
        assert "in fails" in failure.__notes__[0]
        assert isinstance(refusal, AimfairError)
        assert (str(refusal), refusal.exit_code) == ("seeds: found 0", 2)
        assert ends["dies"].lost == "its process died"
        for call, begun in ((Call("waits", waits), None), (Call("loads", Slow(tmp_path)), tmp_path / "begun")):
            end = end_of_stopped(pool, call, begun)
            assert isinstance(end.error, AimfairError), end
            assert end.error.exit_code == 130
        assert (tmp_path / "loaded").exists()
        with pytest.raises(AimfairError, match=r"^not here$"):
            pool.everywhere(complains)
    assert capfd.readouterr() == ("", "")


def end_of_stopped(pool: Pool, call: Call, begun: Path | None) -> Ended:
    """Of a call that is stopped once it has sent a message, or this file is there."""
    found: list[Told | Ended] = []
    pool.submit(call)
    while not (begun.exists() if begun else [one for one in found if one.name == call.name]):
        found += pool.wait(0.5)
    pool.stop()
    while not (ends := [one for one in found if isinstance(one, Ended)]):
        found += pool.wait(0.5)
    (end,) = ends
    return end


def test_a_call_that_is_stopped_while_it_is_loaded_is_loaded_all_the_same(tmp_path: Path) -> None:
    """As a process that is interrupted in an import may die."""
    result, error = _call(pickle.dumps(Slow(tmp_path, signal.SIGINT)), None, "loads")
    assert result is None
    assert isinstance(error, AimfairError)
    assert (str(error), error.exit_code) == (str(Interrupted(signal.SIGINT)), 130)
    assert (tmp_path / "loaded").exists()


def complains() -> None:
    raise AimfairError("not here")


def begun(tiny: Path, path: Path) -> Path:
    """A run whose images are there, and no more; its log is empty."""
    shutil.copytree(tiny / "run", path, ignore=shutil.ignore_patterns("seeds", "log.jsonl", "results*", "report*"))
    for stage in (path / "stages").iterdir():
        if stage.name not in ("prompts.json", "generate.json"):
            shutil.rmtree(stage) if stage.is_dir() else stage.unlink()
    config = settings(tiny / "photographs", methods={name: METHODS[name] for name in SOME}, default_method="aimfair")
    Run.open(path, config, overwrite=True, quiet=True).close()
    return path


def environment(tiny: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(tiny / "cache"), "OMP_NUM_THREADS": "1"}


def same(tiny: Path, path: Path) -> None:
    for seed in (7, 8):
        home, there = (of / "seeds" / str(seed) for of in (tiny / "run", path))
        models = ["baseline", *(f"finetuned/{name}" for name in SOME)]
        files = [f"{model}/{file}" for model in models for file in ("model.safetensors", "history.json")]
        files += ["sensitivity.safetensors", "masks/aimfair.safetensors", "logits/jtt.safetensors"]
        for file in files:
            assert without_times(there / file) == without_times(home / file), file


def events(path: Path, kind: str) -> list[dict[str, str]]:
    lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


@pytest.mark.slow
def test_a_cluster_that_loses_a_machine_gives_the_same_results(tiny: Path, tmp_path: Path) -> None:
    path = begun(tiny, tmp_path / "run")
    command = [sys.executable, "-m", "tests.cluster.on_ray", str(path), "run"]
    done = subprocess.run(command, env=environment(tiny), capture_output=True, text=True, timeout=WAIT)
    assert done.returncode == 0, done.stderr
    same(tiny, path)
    lost = [event["message"] for event in events(path, "warning") if "was lost" in event["message"]]
    assert len(lost) == 1
    assert lost[0].endswith("its machine was lost; begins again, 1 of 3 times")
    assert "raylet" not in done.stdout + done.stderr
    assert "Report: " in done.stdout


def contents(path: Path) -> dict[str, object]:
    """Of the images, trials, models and predictions of a run and of the runs in it; by name."""
    kinds = (
        "*.webp",
        "manifest.jsonl",
        "*.safetensors",
        "predictions.csv",
        "history.json",
        "trials/*/*.json",
        "chosen/*.json",
    )
    found = [file for kind in kinds for folder in PARTS for file in (path / folder).rglob(kind)]
    return {str(file.relative_to(path)): without_times(file) for file in found}


@pytest.mark.slow
def test_images_trials_and_variants_are_those_of_one_process(tiny: Path, tmp_path: Path) -> None:
    config = settings(
        tiny / "photographs",
        seeds=[7],
        generate={"batch_size": 8},
        methods={name: METHODS[name] for name in ("full", "aimfair")},
        default_method="aimfair",
        tune={"trials": 2, "batch": 2},
    )
    paths = tmp_path / "one", tmp_path / "on_ray"
    steps = []
    for path, where in zip(paths, ((), ("--on", "ray")), strict=True):
        Run.open(path, config, quiet=True).close()
        for verb in (["run"], ["ablate", "minority-ratio", "--values", "1/3"]):
            command = [sys.executable, "-m", "aimfair", *verb, "--run", str(path), *where]
            done = subprocess.run(command, env=environment(tiny), capture_output=True, text=True, timeout=WAIT)
            assert done.returncode == 0, done.stderr
        steps.append({event["step"] for event in events(path, "step done")})
    assert not steps[0], "those of the pool alone"
    assert steps[1] > {"generate/0/0", "generate/0/1", "tune/trials/aimfair/0", "train/7"}
    one, several = map(contents, paths)
    assert one.keys() == several.keys()
    assert not [name for name in one if one[name] != several[name]]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_run_that_is_stopped_or_killed_continues(tiny: Path, tmp_path: Path, number: int, code: int) -> None:
    """The signal goes to the whole group, as from a terminal; SIGKILL to the process of the run alone."""
    path = begun(tiny, tmp_path / "run")
    command = [sys.executable, "-m", "aimfair", "run", "--run", str(path), "--on", "ray"]
    options = {"env": environment(tiny), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command, start_new_session=True, **options)  # type: ignore[call-overload]
    while len(events(path, "step done")) < 3:
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.1)
    first.kill() if number == signal.SIGKILL else os.killpg(first.pid, number)
    _, shown = first.communicate(timeout=WAIT)
    assert first.returncode == code
    if code > 0:
        assert shown.splitlines()[-1] == f"stopped by {signal.Signals(number).name}; the same command continues"
    before = len(events(path, "step done"))
    again = subprocess.run(command, timeout=WAIT, capture_output=True, text=True, env=environment(tiny))
    assert again.returncode == 0, again.stderr
    same(tiny, path)
    steps = [event["step"] for event in events(path, "step done")]
    assert len(steps) == len(set(steps)) > before, "none is done twice"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:9", "--address 127.0.0.1:9: no Ray cluster answers: .*refused"),
        ("127.0.0.1:99999", "--address 127.0.0.1:99999: no Ray cluster answers"),
        ("ray://head:10001", "--address: found ray://head:10001, expected HOST:PORT"),
        ("head", "--address: found head, expected HOST:PORT"),
    ],
)
def test_an_address_without_a_cluster_is_refused(address: str, message: str) -> None:
    with (
        pytest.raises(AimfairError, match=f"^{message}"),
        ray_pool(address, ClusterSettings(), threads=1, uses_gpu=False, warn=print),
    ):
        pass


def test_a_busy_machine_has_more_time_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    late = [RuntimeError("not there")] * 2

    def get_node(address: str, node: str) -> str:
        if late:
            raise late.pop()
        return f"{node} at {address}"

    services = SimpleNamespace(get_node=get_node)
    ray = SimpleNamespace(_private=SimpleNamespace(services=services))
    with _patient(ray):
        assert services.get_node("here", "one") == "one at here"
    assert services.get_node is get_node
    monkeypatch.setattr(module, "_SECONDS_TO_START", 0)
    late += [RuntimeError("not there")] * 2
    with pytest.raises(RuntimeError, match="not there"), _patient(ray):
        services.get_node("here", "one")


def test_calls_take_the_share_of_their_gpu() -> None:
    head, worker = {"Resources": {"CPU": 4.0}}, {"Resources": {"CPU": 64.0, "GPU": 8.0}}
    assert cpus_of_call([head], 0, threads=4) == 4
    assert cpus_of_call([head, worker], 1, threads=64) == 8
    assert cpus_of_call([head, worker], 0.5, threads=64) == 4
    assert cpus_of_call([head, worker], 1, threads=4) == 4
    assert cpus_of_call([head, {"Resources": {"CPU": 2.0, "GPU": 8.0}}], 1, threads=64) == 1


@pytest.mark.slow
def test_what_no_machine_has_is_refused() -> None:
    with (
        pytest.raises(
            ConfigError, match=r"^cluster\.gpus: a task takes 9, no machine of the cluster has more than 0; set"
        ),
        ray_pool(None, ClusterSettings(cpus=1, gpus=9), threads=1, uses_gpu=True, warn=lambda _: None),
    ):
        pass
