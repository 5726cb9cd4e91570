"""Slow checks of the kernels' builds, each run again only when what it depends on has changed: make test.

    python -m tools.gates [--all] [NAME ...]

A gate is skipped if its inputs are those of its last pass in this checkout or, before its first one, those of the
commit that is checked out: `.ci/run` runs every gate on every commit, with --all. Compilers and torch count as inputs.
When a gate passes, a stamp with the hash of its inputs is written to build/gates/.

Exit status: 0 every gate passed or was skipped, 1 one failed.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
STAMPS = ROOT / "build" / "gates"

PYTEST = (sys.executable, "-m", "pytest", "-m", "gate")
BUILD = ("csrc", "cmake", "CMakeLists.txt")
CUDA_TESTS = "tests/repository/test_cuda_build.py"
KERNEL_TESTS = ("aimfair/selective", "tests/kernels", "tests/conftest.py", "conftest.py", "Makefile")


@dataclass(frozen=True)
class Gate:
    """A command, and the files and folders below the root that decide what comes of it."""

    inputs: tuple[str, ...]
    command: tuple[str, ...]


GATES = {
    "cuda-build": Gate(
        (
            "csrc/cuda",
            "csrc/include",
            "tools/cuda_kernels.py",
            "docs/performance.md",
            "tests/repository/test_cuda_build.py",
        ),
        (*PYTEST, CUDA_TESTS),
    ),
    "cpp-package": Gate(
        (*BUILD, "examples/cpp", "examples/pybind11", "tests/repository/test_cpp_package.py"),
        (*PYTEST, "tests/repository/test_cpp_package.py"),
    ),
    "cpu-paths": Gate(
        (*BUILD, "tests/cpu_paths", "tests/repository/test_cpu_paths.py"),
        (*PYTEST, "tests/repository/test_cpu_paths.py"),
    ),
    "wheel": Gate(
        (*BUILD, "aimfair/__init__.py", "MANIFEST.in", "pyproject.toml", "setup.py", "tests/repository/test_wheel.py"),
        (*PYTEST, "tests/repository/test_wheel.py"),
    ),
    "emulator": Gate(("cmake", "tests/cuda_emulator"), (*PYTEST, "tests/cuda_emulator")),
    "emulated-kernels": Gate((*BUILD, *KERNEL_TESTS, "tests/cuda_emulator"), ("make", "test-emulated")),
    "sanitized-kernels": Gate((*BUILD, *KERNEL_TESTS), ("make", "test-sanitized")),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="run every gate, whatever its inputs")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(GATES)}")
    options = parser.parse_args()
    if unknown := set(options.names) - GATES.keys():
        parser.error(f"unknown gates: {', '.join(sorted(unknown))}")
    failed = [name for name in options.names or GATES if not passes(name, GATES[name], always=options.all)]
    if failed:
        print(f"gates failed: {', '.join(failed)}")
    return 1 if failed else 0


def passes(name: str, gate: Gate, *, always: bool) -> bool:
    """Runs a gate unless it would only repeat what is known; False if it fails."""
    stamp, found = STAMPS / name, digest(gate.inputs)
    if not always and (reason := reason_to_skip(gate, stamp, found)):
        print(f"{name}: skipped, {reason}", flush=True)
        return True
    stamp.unlink(missing_ok=True)
    print(f"{name}: {' '.join(gate.command)}", flush=True)
    start = time.monotonic()
    if subprocess.run(gate.command, cwd=ROOT, check=False).returncode:
        return False
    print(f"{name}: passed in {time.monotonic() - start:.0f} s", flush=True)
    STAMPS.mkdir(parents=True, exist_ok=True)
    stamp.write_text(found)
    return True


def reason_to_skip(gate: Gate, stamp: Path, found: str) -> str | None:
    if stamp.exists():
        return "its inputs are those of its last pass" if stamp.read_text() == found else None
    return "its inputs are as committed, which CI has tested (make test-all)" if is_committed(gate.inputs) else None


def is_committed(inputs: Sequence[str]) -> bool:
    """Whether git knows these files and none differs from the commit that is checked out."""
    if shutil.which("git") is None:
        return False
    command = ("git", "status", "--porcelain", "--", *inputs)
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return result.returncode == 0 and not result.stdout


def digest(inputs: Sequence[str]) -> str:
    """SHA-256 over the names and bytes of all files, and the versions of what compiles them."""
    found = hashlib.sha256()
    for file in sorted(file for path in inputs for file in files(ROOT / path)):
        found.update(f"{file.relative_to(ROOT)} {file.stat().st_size}\n".encode())
        found.update(file.read_bytes())
    for tool in (os.environ.get("CXX", "g++"), "nvcc"):
        if path := shutil.which(tool):
            found.update(subprocess.run((path, "--version"), capture_output=True, check=True).stdout)
    found.update(f"{sys.version} {torch.__version__}".encode())
    return found.hexdigest()


def files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return [file for file in path.rglob("*") if file.is_file() and file.suffix in SOURCES]


SOURCES = {".py", ".cpp", ".cu", ".h", ".txt", ".cmake", ".in", ".md"}
"""Suffixes of the files that count in a folder: not what a build leaves there."""


if __name__ == "__main__":
    sys.exit(main())
