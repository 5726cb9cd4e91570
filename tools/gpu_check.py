"""Everything that only a GPU can tell, in under ten minutes: make gpu-check.

    python -m tools.gpu_check [--out build/gpu-check] [--generation] [--dry-run]

Builds the extension for this machine's GPU with the Python that runs this, tests it on the GPU, looks for bad memory
accesses and races with compute-sanitizer, runs the C++ example and a selection of the benches. Nothing is downloaded;
the extension goes into aimfair/, as in any build from the sources. A step that fails does not keep the others from
running. The folder gets summary.md, one log for each kind of step, and the table of the benches.

With --generation it looks at the engines of text-to-image models instead, which need diffusers, and at those whose
packages are there.

With --dry-run it needs no GPU: it builds, keeps an extension that is there, and only collects tests and benches.

Exit status: 0 all is well, 1 a step failed, 2 there is no GPU, no torch, or no place for the results.
"""

import argparse
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "gpu"
GRAPHS = ROOT / "tests" / "cuda" / "test_graphs.py"
ENGINES = ROOT / "tests" / "cuda" / "test_engines.py"
SAME_BITS = ROOT / "tests" / "cuda" / "test_same_bits.py"

EXTENSION = ROOT / "aimfair" / "_C.abi3.so"

SANITIZED = (
    "accumulate-torch.bfloat16", "select-normal", "select-few_values", "select_segments-difference",
    "count_keys-difference", "count_equal-difference", "select_above-difference", "unit_scores-norm_ratio",
    "expand_units", "pack_bits", "unpack_bits", "rank", "adamw-torch.bfloat16-0.3-compact",
    "adamw-torch.float32-0.01-dense", "sgd-torch.float16-0.3-dense", "rows-compact", "no_mask-torch.float32",
    "moments-8-compact", "moments-16-dense",
)  # fmt: skip
"""A case of every operator, two or more where it has several kernels: every launch takes milliseconds."""

ENGINE_BENCHES = "generation and (64 or sd21_like)"

BENCHES = (
    "(resnet-18 or flat-1e8) and (adamw or accumulate or value or difference) and not bf16 or difference-resnet-50"
)

SANITIZER_FOUND = 9
"""Exit status of compute-sanitizer if it found something."""

GRACE = 6
"""Seconds in which a step that ran out of time may print what it has found: the benches their table, for example."""

LOG_CHARACTERS = 200_000
"""Of each step, the last ones are kept."""

Kind = Literal["command", "tests", "sanitizer"]


@dataclass(frozen=True)
class Step:
    """One command after another, until one fails.

    Attributes:
        limit: seconds for all of them.
        log: name of the file that takes what they print.
        kind: what else is asked of them than the exit status 0: of tests, that some ran and passed.
    """

    name: str
    commands: Sequence[Sequence[str]]
    limit: float
    log: str
    kind: Kind = "command"
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a step: ``status`` is its exit status, or None if it ran out of time."""

    status: int | None
    seconds: float
    output: str


Run = Callable[[Step], Outcome]


@dataclass(frozen=True)
class Row:
    """A line of the closing table."""

    step: str
    result: str
    seconds: float
    note: str

    @property
    def good(self) -> bool:
        return self.result == "ok"


def judge(step: Step, outcome: Outcome) -> Row:
    last = outcome.output.strip().splitlines()[-1:] or [""]
    note = last[0].strip(" =")[:100]
    if outcome.status is None:
        return Row(step.name, "OUT OF TIME", outcome.seconds, f"limit {step.limit:.0f} s")
    if outcome.status == 127:
        return Row(step.name, "NOT THERE", outcome.seconds, note)
    if step.kind == "command":
        return Row(step.name, "ok" if outcome.status == 0 else "FAILED", outcome.seconds, note)
    summary = re.findall(
        r"^=* ?(\d+ (?:passed|failed|skipped|error|deselected).*? in [\d.]+s.*?) ?=*$", outcome.output, re.M
    )
    note = summary[-1] if summary else note
    if step.kind == "sanitizer":
        found = re.findall(r"ERROR SUMMARY: .*|RACECHECK SUMMARY: .*", outcome.output)
        note = "; ".join([note, *found[-1:]])
    passed = bool(summary) and " passed" in f" {summary[-1]}"
    return Row(step.name, "ok" if outcome.status == 0 and passed else "FAILED", outcome.seconds, note)


def table(rows: Sequence[Row]) -> str:
    cells = [("step", "result", "seconds", "note"), *((r.step, r.result, f"{r.seconds:.0f}", r.note) for r in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    cells.insert(1, tuple("-" * width for width in widths))  # type: ignore[arg-type]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    )


def check(phases: Sequence[Sequence[Step]], out: Path, facts: str, run: Run) -> bool:
    """Runs the steps of a phase side by side and one phase after the other; writes and prints what came of them."""
    out.mkdir(parents=True, exist_ok=True)
    for step in (step for phase in phases for step in phase):
        (out / step.log).unlink(missing_ok=True)
    rows: list[Row] = []
    for phase in phases:
        with ThreadPoolExecutor(max_workers=len(phase)) as pool:
            running = {pool.submit(run, step): step for step in phase}
            for done in as_completed(running):
                step, outcome = running[done], done.result()
                row = judge(step, outcome)
                rows.append(row)
                print(f"{row.step}: {row.result}, {row.seconds:.0f} s, {row.note}", flush=True)
                with (out / step.log).open("a") as log:
                    log.write(f"\n##### {step.name}: {row.result}\n\n{outcome.output[-LOG_CHARACTERS:]}\n")
                text = f"{facts}\n\n{table(rows)}\n"  # after every step: it stays if this is ended from outside
                (out / "summary.md").write_text(text)
    print(f"\n{text}")
    return all(row.good for row in rows)


def run_step(step: Step) -> Outcome:
    """Runs the commands of a step; one that is not there has the exit status 127, as in a shell."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "4", **step.environment}
    begin = time.monotonic()
    output, status = "", 0
    for command in step.commands:
        left = step.limit - (time.monotonic() - begin)
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, start_new_session=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            )  # fmt: skip
        except FileNotFoundError:
            return Outcome(127, time.monotonic() - begin, f"{output}{command[0]} is not there\n")
        try:
            printed, _ = process.communicate(timeout=max(left, 0.1))
        except subprocess.TimeoutExpired:
            return Outcome(None, time.monotonic() - begin, output + _ended(process))
        output, status = output + printed, process.returncode
        if status != 0:
            break
    return Outcome(status, time.monotonic() - begin, output)


def let_steps_be_interrupted() -> None:
    """Where SIGINT is ignored, as in the background of a script: programs inherit that, but no handler."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)


def _ended(process: subprocess.Popen[str]) -> str:
    """What a process prints that is interrupted, as by Ctrl-C, and killed if that does not end it."""
    os.killpg(process.pid, signal.SIGINT)  # with what it started, which would hold the pipe open
    try:
        return process.communicate(timeout=GRACE)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()[0]


def pytest(*arguments: str) -> list[str]:
    # torch of some versions warns of a package of the same machine when it is imported.
    ignored = ("-W", "ignore:The pynvml package:FutureWarning")
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *ignored, *arguments]


def generation_phases(out: Path) -> list[list[Step]]:
    benches = ("bench", "--device", "cuda", "-k", ENGINE_BENCHES, "--budget", "2", "--show-capture", "no")
    return [
        [Step("engines", [pytest(str(ENGINES), "--show-capture", "no")], 280, "tests.log", "tests")],
        [Step("benches", [pytest(*benches, "--save-results", "--results", str(out))], 220, "bench.log", "tests")],
    ]


def phases(out: Path, architecture: str) -> list[list[Step]]:
    """``architecture``: of the GPU, as in ``90``."""
    python = sys.executable
    cuda = ("-DAIMFAIR_CUDA=on", f"-DCMAKE_CUDA_ARCHITECTURES={architecture}-real")

    def cmake(source: Path, folder: str, *settings: str) -> list[Sequence[str]]:
        configure = ("cmake", "-S", str(source), "-B", str(BUILD / folder), "-G", "Ninja", *settings)
        return [configure, ("cmake", "--build", str(BUILD / folder))]

    def on_cuda(*arguments: str) -> list[str]:
        return pytest("--device", "cuda", *arguments)

    def sanitizer(tool: str, *options: str) -> Step:
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", str(SANITIZER_FOUND), *options]
        # Every tensor is an allocation of its own, so that the memory around it belongs to nobody.
        separate = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        tests = pytest(*(f"{SAME_BITS}::test_bits_of_the_cpu[{case}]" for case in SANITIZED))
        return Step(f"compute-sanitizer {tool}", [[*command, *tests]], 120, "sanitizer.log", "sanitizer", separate)

    elsewhere = (GRAPHS, ENGINES, SAME_BITS)
    others = [str(path) for path in sorted(GRAPHS.parent.glob("test_*.py")) if path not in elsewhere]
    only_ours = ("--kernel-regex", "kns=7aimfair4cuda")  # a part of the mangled name
    extension = [
        *cmake(ROOT, "python", "-DAIMFAIR_PYTHON=ON", f"-DPython_EXECUTABLE={python}", *cuda),
        ("cmake", "--install", str(BUILD / "python"), "--prefix", str(ROOT)),
    ]
    example = [
        *cmake(ROOT, "package", "-DAIMFAIR_PYTHON=OFF", *cuda),
        ("cmake", "--install", str(BUILD / "package"), "--prefix", str(BUILD / "installed")),
        *cmake(ROOT / "examples" / "cpp", "example", f"-DCMAKE_PREFIX_PATH={BUILD / 'installed'}", *cuda[1:]),
        (str(BUILD / "example" / "selective_regression_cuda"),),
    ]
    return [
        [
            Step("build the extension", extension, 110, "build.log"),
            Step("C++ example", example, 110, "build.log"),
        ],
        # First a short proof, and the figures: a machine may be taken away at any time.
        [Step("same bits as the CPU", [pytest(str(SAME_BITS))], 40, "tests.log", "tests")],
        [
            Step(
                "benches",
                [on_cuda("bench", "-k", BENCHES, "--budget", "0.1", "--save-results", "--results", str(out))],
                100,
                "bench.log",
                "tests",
            )
        ],
        [
            Step("kernel tests", [on_cuda("tests/kernels")], 120, "tests.log", "tests"),
            Step("optimizers and statistics", [on_cuda("tests/selective")], 120, "tests.log", "tests"),
            sanitizer("memcheck", "--report-api-errors", "no", *only_ours),
            sanitizer("racecheck", *only_ours),
            sanitizer("initcheck"),  # of all kernels: it must see who writes what ours read
        ],
        # By themselves: one measures what the host does, and a graph that ends the process takes nothing else with it.
        [Step("streams and memory", [pytest(*others)], 40, "tests.log", "tests")],
        [Step("graphs", [pytest(str(GRAPHS))], 30, "tests.log", "tests")],
        [Step("2^31 elements", [on_cuda("tests/kernels/test_large.py", "-m", "slow")], 40, "tests.log", "tests")],
    ]


def dry(phases: Sequence[Sequence[Step]]) -> list[list[Step]]:
    """The same steps as far as they go without a GPU: nothing is run but compilers and collections.

    An extension that is there stays; otherwise the one that was built is put into its place, as the collections import
    it.
    """
    return [[_dry(step) for step in phase] for phase in phases]


def _dry(step: Step) -> Step:
    if step.kind == "command":
        kept = str(ROOT) if EXTENSION.exists() else None
        builds = [command for command in step.commands if command[0] == "cmake" and kept != command[-1]]
        return replace(step, commands=builds, limit=1200)
    (command,) = step.commands
    collect = list(command[list(command).index(sys.executable) :])  # without compute-sanitizer
    if "--device" in collect:
        at = collect.index("--device")
        del collect[at : at + 2]
    return replace(step, commands=[[*collect, "--collect-only"]], kind="command")


def facts_of_the_machine() -> str:
    import torch

    def said(*command: str, line: int = 0) -> str:
        if shutil.which(command[0]) is None:
            return f"{command[0]} is not there"
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = done.stdout.strip().splitlines()
        return lines[line] if lines else f"{command[0]} says nothing"

    gpu = said("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    facts = [
        f"date: {time.strftime('%Y-%m-%d %H:%M')}",
        f"GPU, driver, memory: {gpu}",
        f"torch: {torch.__version__}, its CUDA {torch.version.cuda}",
        f"nvcc: {said('nvcc', '--version', line=-1)}",
        f"cmake: {said('cmake', '--version')}",
        f"python: {platform.python_version()}, {os.cpu_count()} processors",
        f"commit: {said('git', '-C', str(ROOT), 'describe', '--always', '--dirty=+')}",
    ]
    return "\n".join(f"- {fact}" for fact in facts)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_check", description="Checks everything on a GPU.")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-check", help="folder for the results")
    parser.add_argument("--generation", action="store_true", help="the engines of text-to-image models instead")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU: build and collect only")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    let_steps_be_interrupted()
    try:
        import torch
    except ImportError as error:
        print(f"gpu-check: {sys.executable}: {error}; name a Python that has torch: make gpu-check PYTHON=...")
        return 2
    if not arguments.dry_run and not torch.cuda.is_available():
        print("gpu-check: torch sees no CUDA device")
        return 2
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {arguments.out}: {error.strerror}")
    if arguments.dry_run:
        steps = generation_phases(out) if arguments.generation else phases(out, "90")
        return 0 if check(dry(steps), out, facts_of_the_machine(), run_step) else 1
    major, minor = torch.cuda.get_device_capability()
    steps = generation_phases(out) if arguments.generation else phases(out, f"{major}{minor}")
    return 0 if check(steps, out, facts_of_the_machine(), run_step) else 1


if __name__ == "__main__":
    sys.exit(main())
