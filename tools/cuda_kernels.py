"""What nvcc compiles the CUDA kernels to: registers, spills, shared memory, the PTX and the machine code (SASS).

    python -m tools.cuda_kernels            # prints the table of docs/performance.md
    python -m tools.cuda_kernels --write    # puts it there

No GPU is needed. tests/repository/test_cuda_build.py checks the same facts against its rules and against the table.
"""

import argparse
import re
import shutil
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
DOCUMENT = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- CUDA kernels: begin -->", "<!-- CUDA kernels: end -->"

MOMENTS = ("float32", "bfloat16", "bits8")
"""Values of the enumeration Moments, which nvcc writes as numbers."""

FLAGS = ("-std=c++20", "-O3", "-fmad=false", "-I", str(ROOT / "csrc"), "-I", str(ROOT / "csrc" / "include"))


@dataclass(frozen=True)
class Multiprocessor:
    """What it holds at once (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability")."""

    shared_bytes: int
    warps: int
    blocks: int


MULTIPROCESSORS = {
    "sm_80": Multiprocessor(164 * 1024, 64, 32),
    "sm_90": Multiprocessor(228 * 1024, 64, 32),
    "sm_100": Multiprocessor(228 * 1024, 64, 32),
    "sm_120": Multiprocessor(100 * 1024, 48, 24),
}
"""Of every architecture that kernels are compiled for. What follows is the same for all of them."""

REGISTERS = 65536
"""Of a multiprocessor."""

REGISTERS_AT_ONCE, WARPS_AT_ONCE = 256, 4
"""A warp gets registers in units of 256, and a multiprocessor holds a multiple of four warps."""

SHARED_AT_ONCE, SHARED_RESERVED = 128, 1024
"""A thread block gets shared memory in units of 128 bytes, and 1024 bytes more for the system's own use."""


@dataclass(frozen=True)
class Usage:
    """Of one kernel on one architecture, as ptxas says."""

    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_bytes: int
    """Stored and loaded."""

    def resident(self, threads: int, architecture: str) -> int:
        """Thread blocks that a multiprocessor holds at once."""
        shared = -(-self.shared_bytes // SHARED_AT_ONCE) * SHARED_AT_ONCE + SHARED_RESERVED
        of = MULTIPROCESSORS[architecture]
        return min(of.blocks, of.warps // _warps(threads), self.fit(threads), of.shared_bytes // shared)

    def fit(self, threads: int) -> int:
        """Thread blocks for which the registers of a multiprocessor suffice."""
        per_warp = -(-self.registers * 32 // REGISTERS_AT_ONCE) * REGISTERS_AT_ONCE
        return REGISTERS // per_warp // WARPS_AT_ONCE * WARPS_AT_ONCE // _warps(threads)


def _warps(threads: int) -> int:
    return -(-threads // 32)


@dataclass(frozen=True)
class Kernel:
    name: str
    """For example ``masked_step<AdamW<true>>``."""
    source: str
    """For example ``step.cu``."""
    threads: int
    """Of a thread block, by ``__launch_bounds__``."""
    least_resident: int
    """Thread blocks on a multiprocessor that ``__launch_bounds__`` asks for; 1 if it does not say."""
    usage: dict[str, Usage]
    """By architecture."""
    ptx: str
    """Its body, for the first architecture."""
    sass: dict[str, list[str]] = field(default_factory=dict)
    """By architecture, the instructions in their order, without operands: ``LDG.E.128``. Empty without nvdisasm."""


def nvcc_version() -> str | None:
    """For example ``13.0``; None without nvcc."""
    if shutil.which("nvcc") is None:
        return None
    text = subprocess.run(["nvcc", "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"release (\d+\.\d+)", text)
    return found[1] if found else None


def disassembler() -> str | None:
    """nvdisasm of the PATH, or of the package nvidia-cuda-nvdisasm."""
    installed = Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin/nvdisasm")
    return shutil.which("nvdisasm") or next((str(path) for path in installed), None)


def architectures() -> list[str]:
    """Those of :data:`MULTIPROCESSORS` that nvcc compiles for."""
    known = subprocess.run(["nvcc", "--list-gpu-code"], check=True, capture_output=True, text=True).stdout.split()
    return [name for name in MULTIPROCESSORS if name in known]


def compile_kernels(sources: Sequence[Path]) -> list[Kernel]:
    """Runs nvcc once for each source, two at a time; raises ``RuntimeError`` with its words if one fails."""
    names = architectures()
    with ThreadPoolExecutor(max_workers=2) as pool:
        return [kernel for kernels in pool.map(lambda source: _compile(source, names), sources) for kernel in kernels]


def _compile(source: Path, names: Sequence[str]) -> list[Kernel]:
    numbers = [name.removeprefix("sm_") for name in names]
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers]
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", *FLAGS, *targets, "-Xptxas", "-v", "--keep", "--keep-dir", folder]
        command += ["-c", str(source), "-o", f"{folder}/{source.stem}.o"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"nvcc cannot compile {source}:\n{done.stdout}{done.stderr}")
        kept = Path(folder) / (f"{source.stem}.compute_{numbers[0]}.ptx" if len(numbers) > 1 else f"{source.stem}.ptx")
        only = Path(folder) / f"{source.stem}.cubin"  # of a single architecture, which nvcc does not name
        found = {number: list(Path(folder).glob(f"{source.stem}.*_{number}.cubin")) or [only] for number in numbers}
        cubins = {f"sm_{number}": paths[0] for number, paths in found.items()}
        return kernels_of(source.name, done.stdout + done.stderr, kept.read_text(), _disassembled(cubins))


def _disassembled(cubins: dict[str, Path]) -> dict[str, str]:
    program = disassembler()
    if program is None:
        return {}
    return {
        name: subprocess.run([program, "-c", str(cubin)], check=True, capture_output=True, text=True).stdout
        for name, cubin in cubins.items()
    }


_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_BODY = re.compile(r"\.entry (\w+)\((.*?)^\}", re.DOTALL | re.MULTILINE)
_SECTION = re.compile(r"^\.text\.(\w+):", re.MULTILINE)
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)


def kernels_of(source: str, log: str, ptx: str, sass: dict[str, str]) -> list[Kernel]:
    """Reads the output of ``ptxas -v``, the PTX and, by architecture, the SASS of one source.

    A source may hold no kernel at all.
    """
    usage: dict[str, dict[str, Usage]] = {}
    entries = list(_ENTRY.finditer(log))
    ends = [*(entry.start() for entry in entries[1:]), len(log)]
    for entry, end in zip(entries, ends, strict=False):
        words = log[entry.end() : end]
        stack, stores, loads = map(int, _found(_STACK, words).groups())
        shared = re.search(r"(\d+) bytes smem", words)
        usage.setdefault(entry[1], {})[entry[2]] = Usage(
            registers=int(_found(re.compile(r"Used (\d+) registers"), words)[1]),
            shared_bytes=int(shared[1]) if shared else 0,
            stack_bytes=stack,
            spill_bytes=stores + loads,
        )
    bodies = {match[1]: match[2] for match in _BODY.finditer(ptx)}
    instructions = {name: instructions_of(text) for name, text in sass.items()}
    kernels = []
    for symbol, name in zip(usage, demangled(list(usage)), strict=True):
        body = bodies[symbol]
        least = re.search(r"\.minnctapersm (\d+)", body)
        threads = int(_found(re.compile(r"\.maxntid (\d+)"), body)[1])
        own = {architecture: found[symbol] for architecture, found in instructions.items()}
        kernels.append(Kernel(name, source, threads, int(least[1]) if least else 1, usage[symbol], body, own))
    return sorted(kernels, key=lambda kernel: kernel.name)


def instructions_of(sass: str) -> dict[str, list[str]]:
    """The instructions of each kernel in the output of nvdisasm."""
    parts = _SECTION.split(sass)
    return {symbol: _INSTRUCTION.findall(text) for symbol, text in zip(parts[1::2], parts[2::2], strict=True)}


def _found(pattern: re.Pattern[str], text: str) -> re.Match[str]:
    match = pattern.search(text)
    if match is None:
        raise ValueError(f"{pattern.pattern!r} is not in what nvcc wrote:\n{text[:500]}")
    return match


def demangled(symbols: list[str]) -> list[str]:
    """Names without return type, namespaces and arguments."""
    if not symbols:
        return []
    program = shutil.which("cu++filt") or "c++filt"
    written = subprocess.run([program, *symbols], check=True, capture_output=True, text=True).stdout
    return [_short(line) for line in written.splitlines()]


def _short(name: str) -> str:
    # The name of the nameless namespace holds a hash of the path.
    name = re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::|\b\w+(?<!>)::", "", name.removeprefix("void "))
    name = name.replace("> >", ">>")
    for value, word in enumerate(MOMENTS):
        name = name.replace(f"(Moments){value}", word)
    depth = 0
    for place, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:place]
    return name


def table(kernels: Sequence[Kernel]) -> list[str]:
    """In Markdown; where architectures differ, in their order."""
    names = list(kernels[0].usage)
    rows = [
        f"| kernel | file | threads | shared memory | registers {', '.join(names)} | resident blocks |",
        "|---|---|---|---|---|---|",
    ]
    for kernel in kernels:
        used = list(kernel.usage.values())
        resident = [kernel.usage[name].resident(kernel.threads, name) for name in names]
        rows.append(
            f"| `{kernel.name}` | {kernel.source} | {kernel.threads} | {_same([u.shared_bytes for u in used])}"
            f" | {', '.join(str(u.registers) for u in used)} | {_same(resident)} |"
        )
    return rows


def _same(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else ", ".join(map(str, values))


def section(kernels: Sequence[Kernel], version: str, date: str) -> str:
    """What stands between the two markers."""
    return "\n".join([BEGIN, f"nvcc {version}, {date}; no kernel spills.", "", *table(kernels), END])


def documented() -> tuple[str, list[str]]:
    """The version of nvcc that the table was made with, and the table."""
    text = DOCUMENT.read_text()
    between = text[text.index(BEGIN) : text.index(END)]
    version = _found(re.compile(r"nvcc (\d+\.\d+),"), between)[1]
    return version, [line for line in between.splitlines() if line.startswith("|")]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.cuda_kernels", description="Table of the CUDA kernels.")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    write = parser.parse_args().write
    version = nvcc_version()
    if version is None:
        parser.exit(2, "nvcc was not found: put it on the PATH\n")
    written = section(compile_kernels(SOURCES), version, time.strftime("%Y-%m-%d"))
    if write:
        text = DOCUMENT.read_text()
        DOCUMENT.write_text(text[: text.index(BEGIN)] + written + text[text.index(END) + len(END) :])
    else:
        print(written)


if __name__ == "__main__":
    main()
