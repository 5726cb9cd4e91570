"""The C++ package: installed with CMake, found with find_package, embedded by the programs in examples."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.gate

ROOT = Path(__file__).parents[2]
CMAKE = shutil.which("cmake", path=str(Path(sys.executable).parent)) or shutil.which("cmake")
NINJA = shutil.which("ninja", path=str(Path(sys.executable).parent)) or shutil.which("ninja")


def run(*command: object) -> str:
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def configure_and_build(source: Path, build: Path, *settings: str) -> None:
    run(CMAKE, "-S", source, "-B", build, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={NINJA}", *settings)
    run(CMAKE, "--build", build)


def install(work: Path, *settings: str) -> Path:
    """Builds the package without Python and torch, and installs it into its own folder."""
    configure_and_build(ROOT, work / "build", "-DCMAKE_DISABLE_FIND_PACKAGE_Python=ON", *settings)
    run(CMAKE, "--install", work / "build", "--prefix", work / "installed")
    return work / "installed"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("package"), "-DAIMFAIR_CUDA=off")


def test_headers_do_not_need_torch(installed: Path) -> None:
    headers = sorted((installed / "include" / "aimfair").glob("*.h"))
    assert headers
    for header in headers:
        included = re.findall(r'#include [<"](.*)[>"]', header.read_text())
        assert not [name for name in included if name.startswith(("torch", "pybind11", "Python"))], header


def test_embedding_program(installed: Path, tmp_path: Path) -> None:
    configure_and_build(ROOT / "examples" / "cpp", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={installed}")
    output = run(tmp_path / "build" / "selective_regression")
    match = re.search(r"selected (\d+) of 3000 weights, (\d+) of them the right ones", output)
    assert match, output
    assert int(match[1]) == 300
    assert int(match[2]) > 200
    assert "0 unselected weights moved" in output


def test_extension_for_numpy(installed: Path, tmp_path: Path) -> None:
    """A module made with pybind11 on the installed package selects as numpy's stable sort does."""
    found = f"-Dpybind11_DIR={run(sys.executable, '-m', 'pybind11', '--cmakedir').strip()}"
    settings = (f"-DCMAKE_PREFIX_PATH={installed}", f"-DPython_EXECUTABLE={sys.executable}", found)
    configure_and_build(ROOT / "examples" / "pybind11", tmp_path / "build", *settings)
    program = """if True:
        import numpy, numpy_masks
        scores = numpy.random.default_rng(0).integers(0, 50, (37, 41)).astype("float32")
        for k in (0, 1, 700, scores.size):
            mask = numpy_masks.top_k(scores, k)
            expected = numpy.zeros(scores.size, bool)
            expected[numpy.argsort(-scores.ravel(), kind="stable")[:k]] = True
            assert mask.shape == scores.shape and (mask.ravel() == expected).all(), k
        for wrong in (lambda: numpy_masks.top_k(scores, -1), lambda: numpy_masks.top_k(scores * float("nan"), 1)):
            try:
                wrong()
            except ValueError as error:
                print(error)
        """
    said = run(sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'build')!r})\n{program}")
    assert said.splitlines() == ["k=-1 is not in the array's size", "a score is NaN"]


@pytest.mark.parametrize("wanted", ["auto", "on"])
def test_cmake_too_old_for_cuda(wanted: str, tmp_path: Path) -> None:
    """The build leaves CUDA out and says why, or refuses if CUDA is asked for; CMake runs the file as a script."""
    script = tmp_path / "old.cmake"
    script.write_text(
        f"set(CMAKE_VERSION 3.24.4)\nset(CMAKE_CUDA_COMPILER nvcc)\nset(AIMFAIR_CUDA {wanted})\n"
        f'include("{ROOT}/cmake/AimfairCuda.cmake")\n'
    )
    result = subprocess.run([CMAKE, "-P", str(script)], capture_output=True, text=True, check=False)
    said = "CUDA needs CMake 3.25.2 or later, this is 3.24.4"
    if wanted == "auto":
        assert result.returncode == 0
        assert f"aimfair: CPU only ({said})" in result.stdout
    else:
        assert result.returncode != 0
        assert said in " ".join(result.stderr.split())


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc on the PATH")
def test_embedding_cuda_program(tmp_path: Path) -> None:
    """Links without a GPU; where there is one, runs."""
    architecture = "90"
    if torch.cuda.is_available():
        architecture = "".join(map(str, torch.cuda.get_device_capability()))
    architectures = f"-DCMAKE_CUDA_ARCHITECTURES={architecture}-real"
    installed = install(tmp_path / "package", "-DAIMFAIR_CUDA=on", architectures)
    configure_and_build(
        ROOT / "examples" / "cpp", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={installed}", architectures
    )
    program = tmp_path / "build" / "selective_regression_cuda"
    assert program.exists()
    if not torch.cuda.is_available():
        return
    output = run(program)
    assert "selected 300 of 3000 weights" in output
    assert "0 unselected weights moved" in output
    assert "the same bits" in output
