"""What a run of the benches leaves behind: a table in the terminal and, if wanted, dated files."""

import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import aimfair
from bench.harness import Result, RivalResult, Runner, as_record
from bench.targets import TARGETS, Bar, Target

RESULTS = Path(__file__).parent / "results"

BUSY_SHARE = 0.10
"""Of the processors taken by others: above this a verdict says so."""

REFERENCE = {
    "ratio": "fastest unmasked rival",
    "copy share": "copy bandwidth",
    "extra memory": "accumulators",
    "overhead": "a copy of as many bytes",
}

GRAPH_NOTE = (
    "Times are of calls, host included; graph ms is of replays as CUDA graphs, of the ways that can be captured, and"
    " targets are judged by these where there are any. Cache: the case moves less than the {megabytes:.0f} MB that the"
    " second-level cache holds and may get a part from there."
)

Table = list[list[str]]
"""Rows of cells; the first holds the headings."""


@dataclass(frozen=True)
class Verdict:
    """How the worst of the cases a target covers did, or of those on one list of tensors."""

    target: Target
    bar: Bar
    result: Result
    value: float

    @property
    def value_of_calls(self) -> float | None:
        """The ratio of calls, host included, where that of replays as CUDA graphs is judged."""
        rival = self.result.judged_rival(self.target.rival)
        return rival.ratio if rival and rival.graph_ratio and self.target.metric == "ratio" else None

    @property
    def busy(self) -> bool:
        """Others took so much of the processors that the figure says little, whatever it is."""
        return (self.result.others_share or 0.0) > BUSY_SHARE

    @property
    def must(self) -> bool:
        return self.target.meets(self.value, self.bar.must)

    @property
    def aim(self) -> bool:
        return self.target.meets(self.value, self.bar.aim)


def achieved(target: Target, result: Result) -> float | None:
    """What ``result`` reached in the measure of ``target``; None if it was not measured."""
    if target.metric == "copy share":
        return result.copy_share
    if target.metric == "extra memory":
        return None if result.extra_bytes is None else result.extra_bytes / result.accumulator_bytes
    if target.metric == "overhead":
        return result.seconds - result.floor_bytes / result.copy_gb_per_s / 1e9
    rival = result.judged_rival(target.rival)
    return None if rival is None else rival.graph_ratio or rival.ratio


def verdicts(results: Sequence[Result], device: str) -> list[Verdict]:
    """One verdict per target, list of tensors and density; of the two states a target leaves open, the better."""
    found: dict[tuple[object, ...], Verdict] = {}
    for target in TARGETS:
        bar = target.bar(device)
        for result in results:
            value = achieved(target, result) if target.covers(*_fields(result)) else None
            if bar is None or value is None:
                continue
            key = (id(target), result.tensors, result.density, result.pattern)
            if key not in found or target.meets(value, found[key].value):
                found[key] = Verdict(target, bar, result, value)
    return list(found.values())


def _fields(result: Result) -> tuple[str, str, float | None, str, str]:
    return result.work, result.tensors, result.density, result.pattern, result.state


def results_table(results: Sequence[Result], judged: Sequence[Verdict], cache_bytes: int | None = None) -> Table:
    """``cache_bytes``: size of a GPU's second-level cache; None without a GPU."""
    table = [[
        "work", "tensors", "density", "pattern", "state", "ours ms", "rival ms", "ratio", "masked rival ms", "ratio",
        "must", "aim", "GB/s", "% copy", "items/s", "extra MB", "others",
        *([] if cache_bytes is None else ["graph ms", "rival graph ms", "ratio", "cache"]),
    ]]  # fmt: skip
    for result in results:
        own = [verdict for verdict in judged if verdict.result is result]
        table.append([
            result.work,
            result.tensors,
            "" if result.density is None else f"{result.density:.0%}",
            result.pattern,
            result.state,
            f"{result.seconds * 1e3:.3g}",
            *_rival_cells(result.fastest()),
            *_rival_cells(result.fastest(masked=True)),
            ", ".join(_bar_cell(v.target, v.bar.must, v.must) for v in own),
            ", ".join(_bar_cell(v.target, v.bar.aim, v.aim) for v in own),
            f"{result.gb_per_s:.1f}" if result.floor_bytes else "",
            f"{result.copy_share:.0%}" if result.floor_bytes else "",
            "" if result.items is None else f"{result.items / result.seconds:.3g}",
            "" if result.extra_bytes is None else f"{result.extra_bytes / 1e6:.1f}",
            "" if result.others_share is None else f"{result.others_share:.0%}",
            *([] if cache_bytes is None else _graph_cells(result, cache_bytes)),
        ])  # fmt: skip
    return table


def _graph_cells(result: Result, cache_bytes: int) -> list[str]:
    """Replays of ours and of the rival whose replays are the fastest of those that touch every element."""
    timed = [(r.graph_seconds, r.graph_ratio, r.name) for r in result.rivals if r.graph_seconds and not r.masked]
    seconds, ratio, name = min(timed, default=(None, None, ""))
    return [
        "" if result.graph_seconds is None else f"{result.graph_seconds * 1e3:.3g}",
        "" if seconds is None else f"{seconds * 1e3:.3g} ({name})",
        "" if ratio is None else f"{ratio:.2f}",
        "yes" if result.floor_bytes < cache_bytes else "",
    ]


def _rival_cells(rival: RivalResult | None) -> list[str]:
    return ["", ""] if rival is None else [f"{rival.seconds * 1e3:.3g} ({rival.name})", f"{rival.ratio:.2f}"]


def _amount(target: Target, value: float) -> str:
    if target.metric == "overhead":
        return f"{value * 1e6:.3g} us"
    return f"{value:.3g}x" if target.metric == "ratio" else f"{value:.1%}"


def _bar_cell(target: Target, limit: float, met: bool) -> str:
    return f"{_amount(target, limit)} {'yes' if met else 'NO'}"


def targets_table(judged: Sequence[Verdict]) -> Table:
    """One line per target: the worst list of tensors decides."""
    graphs = any(verdict.value_of_calls is not None for verdict in judged)
    table = [["target", "against", "must", "aim", "worst", "on", "met", *(["by calls"] if graphs else [])]]
    for target in TARGETS:
        own = [verdict for verdict in judged if verdict.target is target]
        if not own:
            continue
        worst = own[0]
        for verdict in own[1:]:
            if target.meets(worst.value, verdict.value):
                worst = verdict
        table.append([
            target.name,
            target.rival or REFERENCE[target.metric],
            _amount(target, worst.bar.must),
            _amount(target, worst.bar.aim),
            _amount(target, worst.value),
            f"{worst.result.tensors}, {worst.result.state}".removesuffix(", "),
            ("aim" if worst.aim else "must" if worst.must else "NO") + ", on a busy machine" * worst.busy,
            *(["" if worst.value_of_calls is None else _amount(target, worst.value_of_calls)] if graphs else []),
        ])  # fmt: skip
    return table


def lines(table: Table) -> list[str]:
    """A table that reads well as plain text and as Markdown."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rule = ["-" * width for width in widths]
    head, *rest = table
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (head, rule, *rest)
    ]


def environment(runner: Runner, selection: str) -> dict[str, Any]:
    """What the figures depend on. ``selection``: what part of the benches ran, empty for all."""
    described = {
        "date": time.strftime("%Y-%m-%d"),
        "device": device_name(runner.device),
        "threads": torch.get_num_threads(),
        "aimfair": aimfair.__version__ + _commit(),
        "build": dict(aimfair.build_info()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "kernel": f"{platform.system()} {platform.release()}",
        "copy GB/s": _spread([result.copy_gb_per_s for result in runner.results], "{:.1f}"),
        "processors taken by others": _spread([r.others_share for r in runner.results if r.others_share], "{:.0%}"),
        "selection": selection or "all",
    }
    threading = {name: os.environ[name] for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if name in os.environ}
    return described | threading


def _spread(values: Sequence[float], form: str) -> str:
    if not values:
        return "unknown"
    middle, least, most = (form.format(value) for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} (median of cases, {least} to {most})"


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return models[0] if models else platform.processor() or platform.machine()


def _commit() -> str:
    """The commit the sources are at, with a plus sign if they differ from it; empty outside a repository."""
    try:
        command = ("git", "describe", "--always", "--dirty=+", "--exclude=*")
        found = subprocess.run(command, cwd=RESULTS.parent, check=True, capture_output=True, text=True)
        return f" at {found.stdout.strip()}"
    except (OSError, subprocess.CalledProcessError):
        return ""


def file_stem(device: torch.device, selection: str) -> str:
    """As in ``2026-11-21-cpu-amd-epyc-2t``, with ``-partial`` behind it if not everything ran."""
    name = re.sub(r"\((R|TM)\)|@.*|\b(CPU|Processor|\d+-Core)\b", " ", device_name(device), flags=re.IGNORECASE)
    words = [time.strftime("%Y-%m-%d"), device.type, *re.findall(r"[a-z0-9]+", name.lower())]
    if device.type == "cpu":
        words.append(f"{torch.get_num_threads()}t")
    return "-".join(words + ["partial"] * bool(selection))


def text(runner: Runner, selection: str) -> str:
    """The whole report in Markdown."""
    judged = verdicts(runner.results, runner.device.type)
    cache_bytes = None
    if runner.device.type == "cuda":
        cache_bytes = torch.cuda.get_device_properties(runner.device).L2_cache_size
    described = environment(runner, selection)
    facts = [f"- {name}: {_plain(value)}" for name, value in described.items()]
    targets = targets_table(judged)
    parts = [
        f"# Benches, {described['date']}, {described['device']}",
        "\n".join(facts),
        "Ratios are the rival's time over ours, medians over rounds in which both ran. GB/s counts the bytes the work"
        " must move (bench/floors.py), % copy its share of the copy bandwidth in the same rounds. Masked rivals keep"
        " unselected weights. Others: share of all processors that other processes took; above a few percent the"
        " figures of that case are worth little.",
        *(["## Targets", "\n".join(lines(targets))] if len(targets) > 1 else []),
        "## Cases",
        *([] if cache_bytes is None else [GRAPH_NOTE.format(megabytes=cache_bytes / 1e6)]),
        "\n".join(lines(results_table(runner.results, judged, cache_bytes))),
    ]
    return "\n\n".join(parts) + "\n"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def save(runner: Runner, selection: str, folder: Path) -> Path:
    """Writes ``<stem>.md`` and ``.json`` to ``folder``; returns the former."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{file_stem(runner.device, selection)}.md"
    path.write_text(text(runner, selection))
    record = {"environment": environment(runner, selection), "cases": [as_record(result) for result in runner.results]}
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    return path
