"""The C++ package: installed with CMake, found with find_package, embedded by the program in examples/cpp."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CMAKE = shutil.which("cmake", path=str(Path(sys.executable).parent)) or shutil.which("cmake")
NINJA = shutil.which("ninja", path=str(Path(sys.executable).parent)) or shutil.which("ninja")


def run(*command: object) -> str:
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def configure_and_build(source: Path, build: Path, *settings: str) -> None:
    run(CMAKE, "-S", source, "-B", build, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={NINJA}", *settings)
    run(CMAKE, "--build", build)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built without Python, torch and CUDA, in a folder of its own."""
    work = tmp_path_factory.mktemp("package")
    configure_and_build(ROOT, work / "build", "-DAIMFAIR_CUDA=off", "-DCMAKE_DISABLE_FIND_PACKAGE_Python=ON")
    run(CMAKE, "--install", work / "build", "--prefix", work / "installed")
    return work / "installed"


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
