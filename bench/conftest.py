"""Options, fixtures and the closing table of ``pytest bench/``."""

import gc
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from bench import report
from bench.harness import COPY_ELEMENTS, Runner

BENCH = Path(__file__).parent

_OF_THE_PIPELINE = ("bench_data.py", "bench_generation.py")
collect_ignore = [] if find_spec("pydantic") else list(_OF_THE_PIPELINE)


def pytest_report_header() -> str | None:
    """Says which benches cannot be collected."""
    return f"without aimfair[fair]: {', '.join(collect_ignore)} left out" if collect_ignore else None


RUNNER = pytest.StashKey[Runner]()
DESELECTED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("aimfair benches")

    group.addoption(
        "--budget", type=float, default=0.4, metavar="SECONDS", help="measuring time for each way of a case [0.4]"
    )
    group.addoption(
        "--shrink",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="scale the first dimension of every tensor, as in 0.001 to try the benches out; such figures mean nothing",
    )
    group.addoption("--save-results", action="store_true", help="write the report, with the date in its name")
    group.addoption("--results", type=Path, default=report.RESULTS, metavar="FOLDER", help="where to [bench/results]")


def pytest_configure(config: pytest.Config) -> None:
    config.option.benchmark_quiet = True  # the table below says more than pytest-benchmark's
    if config.option.save_results and config.option.shrink != 1.0:
        raise pytest.UsageError("--save-results: figures of shrunk tensors mean nothing")
    if config.option.device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch sees no CUDA device")
    shrink = min(1.0, config.option.shrink)
    config.stash[RUNNER] = Runner(
        torch.device(config.option.device),
        budget=config.option.budget,
        copy_elements=max(1, round(COPY_ELEMENTS * shrink)),
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    clock = config.stash[RUNNER].clock
    for item in items:
        if item.path.is_relative_to(BENCH):
            item.add_marker(pytest.mark.benchmark(timer=clock.now))


@pytest.fixture(scope="session")
def runner(pytestconfig: pytest.Config) -> Runner:
    gc.freeze()  # keeps the collection before each case short
    return pytestconfig.stash[RUNNER]


@pytest.fixture(scope="session")
def device(runner: Runner) -> torch.device:
    return runner.device


@pytest.fixture(scope="session")
def shrink(pytestconfig: pytest.Config) -> float:
    return float(pytestconfig.option.shrink)


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        item.config.stash[DESELECTED] = True


def selection(config: pytest.Config) -> str:
    """What was asked for, if less than everything."""
    words = []
    if BENCH not in [Path(argument).resolve() for argument in config.args]:
        words += [argument.rpartition("/")[2] for argument in config.args]
    if config.stash.get(DESELECTED, False):
        words += [f"-m {config.option.markexpr!r}"] if config.option.markexpr else []
        words += [f"-k {config.option.keyword!r}"] if config.option.keyword else []
    return " ".join(words)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    runner = config.stash[RUNNER]
    if not runner.results:
        return
    chosen = selection(config)
    terminalreporter.section("benches")
    terminalreporter.write_line(report.text(runner, chosen))
    if config.option.save_results:
        if failed := sum(len(terminalreporter.stats.get(outcome, [])) for outcome in ("failed", "error")):
            terminalreporter.write_line(f"not saved: {failed} benches failed", red=True)
        else:
            terminalreporter.write_line(f"saved to {report.save(runner, chosen, config.option.results)}")
