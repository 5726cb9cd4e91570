"""Every CPU path gives the same bits, on x86 and on Arm: a program on the C++ package that hashes results.

The program for Arm is built by a cross-compiler and run by an emulator of the processor.
"""

import shutil
from pathlib import Path

import pytest

from tests.repository.test_cpp_package import ROOT, configure_and_build, install, run

pytestmark = pytest.mark.gate

ARM_COMPILER, ARM_EMULATOR, ARM_LIBRARIES = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"
"""Of Debian's packages g++-aarch64-linux-gnu and qemu-user."""

needs_arm = pytest.mark.skipif(
    not (shutil.which(ARM_COMPILER) and shutil.which(ARM_EMULATOR)),
    reason="needs a cross-compiler and qemu: apt install g++-aarch64-linux-gnu qemu-user",
)


def program(work: Path, *settings: str) -> Path:
    installed = install(work, "-DAIMFAIR_CUDA=off", *settings)
    prefix = f"-DCMAKE_PREFIX_PATH={installed}"
    configure_and_build(ROOT / "tests" / "cpu_paths", work / "program", prefix, "-DCMAKE_BUILD_TYPE=Release", *settings)
    return work / "program" / "cpu_paths"


def hashes(output: str) -> dict[str, str]:
    """Path -> hashes of its results."""
    return dict(line.split(maxsplit=1) for line in output.splitlines())


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return hashes(run(program(tmp_path_factory.mktemp("here"))))


def test_paths_of_this_processor(here: dict[str, str]) -> None:
    assert "scalar" in here
    assert len(set(here.values())) == 1


@needs_arm
def test_paths_of_arm(here: dict[str, str], tmp_path: Path) -> None:
    found = program(
        tmp_path,
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={ARM_COMPILER}",
        "-DCMAKE_FIND_ROOT_PATH_MODE_PACKAGE=BOTH",
    )
    output = run(ARM_EMULATOR, "-L", ARM_LIBRARIES, "-E", f"LD_LIBRARY_PATH={ARM_LIBRARIES}/lib", found)
    assert hashes(output) == {"scalar": here["scalar"], "neon": here["scalar"]}
