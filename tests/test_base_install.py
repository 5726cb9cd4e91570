"""What `pip install aimfair` gives without extras: the kernel package, on torch, numpy and safetensors alone."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

TUNING = """
import copy, sys, torch, aimfair
from aimfair.selective import ops, reference
from aimfair.selective.self_check import wrong_kernels

assert wrong_kernels(torch.device("cpu")) == []
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 2))
probe = aimfair.Sensitivity(model, sources=("real", "synthetic"))
for source in ("real", "synthetic"):
    model(torch.randn(8, 20)).square().mean().backward()
    probe.update(source)
mask = probe.select("top_k", density=0.1)
mask.save(sys.argv[1])
before = copy.deepcopy(model.state_dict())
optimizer = aimfair.MaskedAdamW(model.named_parameters(), aimfair.ParameterMask.load(sys.argv[1]), state="compact")
model(torch.randn(8, 20)).square().mean().backward()
optimizer.step()
moved = {name: value != before[name] for name, value in model.state_dict().items()}
assert sum(int(tensor.sum()) for tensor in moved.values()) == mask.nnz
assert all(torch.equal(moved[name], selected) for name, selected in mask.to_bool().items())
print(aimfair.build_info()["version"])
"""


def base_distributions() -> set[str]:
    """torch, numpy, safetensors and what they require."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {_name(requirement) for requirement in project["dependencies"]}
    assert names == {"numpy", "safetensors", "torch"}
    return with_requirements(names)


def with_requirements(names: set[str]) -> set[str]:
    """These distributions and what they require here, as names of installed distributions."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        needed = [_name(requirement) for requirement in requires(name) or () if "extra ==" not in requirement]
        waiting += [other for other in needed if _is_installed(other)]  # the others are of other platforms
    return found


def _name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except ModuleNotFoundError:
        return False
    return True


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages that holds those distributions and aimfair, and nothing else."""
    folder = link_packages(tmp_path_factory.mktemp("site-packages"), base_distributions())
    (folder / "aimfair").symlink_to(ROOT / "aimfair")
    return folder


def link_packages(folder: Path, names: set[str]) -> Path:
    """Links these installed distributions into a folder, which it returns."""
    for name in names:
        for file in distribution(name).files or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(Path(str(distribution(name).locate_file(top))))
    return folder


def python(environment: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with these packages: without the ones installed here, and without PYTHONPATH."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    program = f"import runpy, sys; sys.path.insert(0, {str(environment)!r}); first = sys.argv.pop(1); "
    if arguments[0] == "aimfair":
        program += "runpy.run_module(first, run_name='__main__', alter_sys=True)"
    else:
        program += "exec(first)"
    return subprocess.run(
        [sys.executable, "-S", "-c", program, *arguments],
        capture_output=True, text=True, cwd=environment, env=variables, timeout=120,
    )  # fmt: skip


def test_the_environment_holds_nothing_else(environment):
    result = python(environment, "import pydantic")
    assert "No module named 'pydantic'" in result.stderr


def test_selective_tuning_works(environment, tmp_path):
    result = python(environment, TUNING, str(tmp_path / "mask.safetensors"))
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", result.stdout)


def test_the_command_line_works_and_names_the_extra(environment):
    result = python(environment, "aimfair", "--help")
    assert (result.returncode, result.stderr) == (0, "")
    result = python(environment, "aimfair", "doctor")
    assert "equal to the reference" in result.stdout
    result = python(environment, "aimfair", "delta", "make", "none", "none", "--to", "delta")
    assert (result.returncode, result.stderr) == (2, "error: none: no such file or folder\n")
    lines = ["demo", "run --config demo", "config --keys", "scan", "scan --config demo", "export --run x",
             "ablate density --run x", "engine list"]  # fmt: skip
    program = f"from aimfair.commands.cli import main; print([main(line.split()) for line in {lines}])"
    result = python(environment, program)
    assert result.stdout == f"{[1] * len(lines)}\n"
    for line, said in zip(lines, result.stderr.splitlines(), strict=True):
        assert said.startswith(f"error: aimfair {line.split()[0]} needs ")
        assert said.endswith(": pip install 'aimfair[fair]'")


def test_every_module_of_it_imports(environment):
    modules = sorted(path.stem for path in (ROOT / "aimfair" / "selective").glob("*.py"))
    result = python(environment, "; ".join(f"import aimfair.selective.{module}" for module in modules))
    assert (result.returncode, result.stderr) == (0, "")
