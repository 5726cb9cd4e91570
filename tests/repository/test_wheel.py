"""What is released: the source distribution, the wheel that is built from it, and the wheel in an empty environment."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import aimfair
from tests.test_base_install import base_distributions, link_packages, with_requirements

pytestmark = pytest.mark.gate

ROOT = Path(__file__).parents[2]
EXTENSION = "aimfair/_C.abi3.so"
BESIDE = {"CHANGELOG.md", "CMakeLists.txt", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"}
MADE = {"PKG-INFO", "setup.cfg"}
KERNEL_TESTS = ("test_mask.py", "test_paths_and_threads.py", "test_step_plan.py", "test_topk_units.py")


def run(*command: object, **options: object) -> str:
    words = [str(word) for word in command]
    result = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options)
    assert result.returncode == 0, f"{command}\n{result.stdout}"
    return result.stdout


def sources(*folders: str) -> set[str]:
    """Files of these folders that belong to the repository."""
    files = run("git", "ls-files", "--cached", "--others", "--exclude-standard", *folders, cwd=ROOT).splitlines()
    return {file for file in files if (ROOT / file).exists()}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    variables = {name: value for name, value in os.environ.items() if name not in ("CUDAARCHS", "AIMFAIR_SANITIZE")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    run(
        sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT,
        env=variables | {"AIMFAIR_CUDA": "off", "PATH": path},
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (wheel,) = dist.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_source_distribution_has_what_a_build_reads(dist: Path) -> None:
    (file,) = dist.glob("*.tar.gz")
    assert file.name == f"aimfair-{aimfair.__version__}.tar.gz"
    with tarfile.open(file) as archive:
        found = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    found = {name for name in found if not name.startswith("aimfair.egg-info/")}
    assert found == sources("aimfair", "csrc", "cmake") | BESIDE | MADE


def test_the_wheel_has_the_package_alone(unpacked: Path) -> None:
    metadata = f"aimfair-{aimfair.__version__}.dist-info"
    found = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    described = {name for name in found if name.startswith(f"{metadata}/")}
    assert found - described == sources("aimfair") | {EXTENSION}
    assert {f"{metadata}/licenses/LICENSE", f"{metadata}/entry_points.txt"} < described


def test_one_wheel_for_all_pythons(wheel: Path, unpacked: Path) -> None:
    assert re.fullmatch(rf"aimfair-{re.escape(aimfair.__version__)}-cp311-abi3-linux_\w+\.whl", wheel.name)
    symbols = set(re.findall(r"U (_Py\w+)", run("nm", "-D", unpacked / EXTENSION)))
    assert symbols <= {"_Py_NoneStruct", "_Py_Dealloc"}  # of the private ones, those in the stable ABI
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "-d", unpacked / EXTENSION)))
    system = {"libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6"}
    assert needed - system == {"libtorch_cpu.so", "libgomp.so.1"}  # both of torch; see repair-wheel-command
    assert not re.search(r"R(UN)?PATH", run("readelf", "-d", unpacked / EXTENSION))


def test_the_wheel_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """One with torch, what it needs, and pytest; without a compiler on the PATH, and far from this tree."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    (tmp_path / "packages").mkdir()
    tools = with_requirements({"hypothesis", "pytest", "pytest-benchmark"})
    packages = link_packages(tmp_path / "packages", base_distributions() | tools)
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    (site,) = (tmp_path / "venv" / "lib").glob("python3*/site-packages")
    (site / "packages.pth").write_text(f"{packages}\n")

    (tmp_path / "work" / "tests").mkdir(parents=True)
    for name in ("conftest.py", "pyproject.toml", "tests/__init__.py", "tests/conftest.py"):
        shutil.copy(ROOT / name, tmp_path / "work" / name)
    shutil.copytree(ROOT / "tests" / "kernels", tmp_path / "work" / "tests" / "kernels")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    options = {"cwd": tmp_path / "work", "env": variables | {"PATH": "/nowhere"}}

    program = "import aimfair; print(aimfair.__file__, aimfair.build_info()['version'])"
    assert run(python, "-c", program, **options) == f"{site}/aimfair/__init__.py {aimfair.__version__}\n"
    assert run(python.parent / "aimfair", "--version", **options) == f"aimfair {aimfair.__version__}\n"
    said = run(python, "-m", "pytest", *(f"tests/kernels/{name}" for name in KERNEL_TESTS), **options)
    assert re.search(r"\d{3,} passed", said), said
    assert "failed" not in said
