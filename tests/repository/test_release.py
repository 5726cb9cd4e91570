"""The workflows of releases, and the numbers that several files state: versions of torch and of Python."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import aimfair
from aimfair.selective.extension import OLDEST_TORCH

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CIBUILDWHEEL = PROJECT["tool"]["cibuildwheel"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_the_oldest_torch_is_the_same_everywhere() -> None:
    major, minor = OLDEST_TORCH
    oldest = f"{major}.{minor}"
    assert aimfair.build_info()["torch_abi"] == oldest
    assert (
        f"TORCH_TARGET_VERSION=0x{major:02x}{minor:02x}000000000000" in (ROOT / "cmake/AimfairTorch.cmake").read_text()
    )
    assert f"torch_version VERSION_LESS {oldest})" in (ROOT / "cmake/AimfairTorch.cmake").read_text()
    assert f"torch>={oldest}" in PROJECT["project"]["dependencies"]
    assert f"torch>={oldest}" in PROJECT["build-system"]["requires"]
    assert f"torch=={oldest}.0 " in CIBUILDWHEEL["before-build"]
    assert f"torch=={oldest}.0" in CIBUILDWHEEL["overrides"][0]["test-requires"]


def test_the_oldest_python_is_the_same_everywhere() -> None:
    assert PROJECT["project"]["requires-python"] == ">=3.11"
    assert "Py_LIMITED_API=0x030B0000" in (ROOT / "cmake" / "AimfairPython.cmake").read_text()
    assert '{"py_limited_api": "cp311"}' in (ROOT / "setup.py").read_text()
    assert CIBUILDWHEEL["build"].split()[0] == CIBUILDWHEEL["overrides"][0]["select"] == "cp311-*"


def test_what_is_tested_at_a_push_is_what_wheels_are_tested_with() -> None:
    matrix = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]["test"]["strategy"]["matrix"]
    assert [f"cp{version.replace('.', '')}-*" for version in matrix["python"]] == CIBUILDWHEEL["build"].split()
    assert {"python": "3.11", "torch": f"{OLDEST_TORCH[0]}.{OLDEST_TORCH[1]}.0"} in matrix["include"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_and_make_targets_exist(path: Path) -> None:
    jobs = yaml.safe_load(path.read_text())["jobs"]
    used = [job["uses"] for job in jobs.values() if "uses" in job]
    steps = [step for job in jobs.values() for step in job.get("steps", ())]
    used += [step["uses"] for step in steps if "uses" in step]
    assert used
    for action in used:
        local = action.startswith("./") and (ROOT / action).is_file()
        assert local or re.fullmatch(r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+", action), action
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert {name for step in steps for name in re.findall(r"\bmake ([\w-]+)", step.get("run", ""))} <= targets


def test_wheels_of_pypi_have_no_local_version() -> None:
    """PyPI refuses them; every other wheel needs one, to be told from those."""
    rows = yaml.safe_load((ROOT / ".github/workflows/wheels.yml").read_text())["jobs"]["wheel"]["strategy"]["matrix"][
        "include"
    ]
    assert {row["to"] for row in rows} == {"pypi", "release"}
    for row in rows:
        expected = f"cu{row['cuda'].partition('.')[0]}" if row["cuda"] else "cpu"
        assert row["local"] == ("" if row["to"] == "pypi" else expected), row
