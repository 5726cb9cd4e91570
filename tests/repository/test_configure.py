"""What a build finds out before it compiles: that torch fits, and the GPUs to compile for."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake on the PATH")


def configure(folder: Path, version: str, cuda: str | None, nvcc: str | None) -> subprocess.CompletedProcess[str]:
    """Runs cmake/AimfairTorch.cmake on a torch that has nothing but its versions."""
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(
        f"class version: cuda = {cuda!r}\n__version__, __path__ = {version!r}, ['/torch']\n"
    )
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(torch_alone LANGUAGES NONE)\n"
        "set_property(GLOBAL PROPERTY TARGET_SUPPORTS_SHARED_LIBS TRUE)\n"
        f"set(AIMFAIR_WITH_CUDA {'ON' if nvcc else 'OFF'})\nset(CMAKE_CUDA_COMPILER_VERSION {nvcc or ''})\n"
        f'set(Python_EXECUTABLE "{python}")\ninclude("{ROOT}/cmake/AimfairTorch.cmake")\n'
    )
    return subprocess.run(["cmake", "-S", folder, "-B", folder / "build"], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("cuda", "nvcc"), [("13.0", "13.0.88"), ("13.0", "13.2.1"), (None, "13.0.88"), ("12.8", None)])
def test_accepted(tmp_path, cuda, nvcc):
    """Another minor version, a torch for the CPU, and a build without CUDA."""
    done = configure(tmp_path, "2.11.0", cuda, nvcc)
    assert done.returncode == 0, done.stderr
    assert "aimfair: torch 2.11.0 in /torch" in done.stdout


def test_another_major_version_of_cuda(tmp_path):
    done = configure(tmp_path, "2.11.0+cu128", "12.8", "13.0.88")
    assert done.returncode != 0
    words = " ".join(done.stderr.split())
    assert "torch 2.11.0+cu128 is built for CUDA 12.8, but nvcc is of CUDA 13.0.88; set CUDACXX to an" in words
    assert "nvcc of CUDA 12, install a torch for CUDA 13, or build without CUDA: AIMFAIR_CUDA=off" in words


def test_an_older_torch(tmp_path):
    done = configure(tmp_path, "2.10.1", None, None)
    assert done.returncode != 0
    assert "torch 2.10.1 was found, 2.11 or later is needed" in " ".join(done.stderr.split())


@pytest.mark.parametrize(("known", "environment", "expected"), [
    ("75 80 86 89 90 100 103 110 120 121", {}, "80-real;90;100;120"),  # of nvcc 13.0
    ("75 80 86 89 90", {}, "80-real;90"),
    ("75 80 86 89 90 100 120", {"CUDAARCHS": "90-real"}, ""),  # left to CMake
])  # fmt: skip
def test_architectures(tmp_path, known, environment, expected):
    """Those that nvcc knows; CMake runs the file as a script, in which no language can be enabled."""
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\n" + "".join(f"echo compute_{number}\n" for number in known.split()))
    nvcc.chmod(0o755)
    script = tmp_path / "architectures.cmake"
    script.write_text(
        f"set(CMAKE_VERSION 3.25.2)\nset(CMAKE_CUDA_COMPILER {nvcc})\nset(AIMFAIR_CUDA on)\n"
        "macro(enable_language)\nendmacro()\nmacro(find_package)\nendmacro()\n"
        f'include("{ROOT}/cmake/AimfairCuda.cmake")\nmessage(STATUS "for <${{CMAKE_CUDA_ARCHITECTURES}}>")\n'
    )
    variables = {name: value for name, value in os.environ.items() if name != "CUDAARCHS"} | environment
    done = subprocess.run(["cmake", "-P", script], capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == 0, done.stderr
    assert f"for <{expected}>" in done.stdout
