"""A torch that does not fit the extension is refused with what was found, what was expected and what to do."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import aimfair
from aimfair.selective import extension

PACKAGE = Path(aimfair.__file__).parent


@pytest.mark.parametrize("version", ["2.11.0", "2.11.0a0+git1", "2.13.0+cpu", "2.111.0", "3.0.1", "of my own"])
def test_later_versions_of_torch_are_accepted(version: str) -> None:
    extension.refuse_old_torch(version)


def imported(folder: Path) -> str:
    """What Python says last when the kernels are imported with the packages of a folder before the others."""
    packages = [str(folder), str(Path(torch.__path__[0]).parent)]
    program = f"import sys; sys.path += {packages}; import aimfair; aimfair.build_info()"
    command = [sys.executable, "-S", "-c", program]  # -S: without the links of an editable installation
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder with the package, but without its extension."""
    (tmp_path / "aimfair").mkdir()
    for name in ("__init__.py", "selective"):
        (tmp_path / "aimfair" / name).symlink_to(PACKAGE / name)
    return tmp_path


def test_an_old_torch_is_refused_before_the_extension_is_loaded(bare: Path) -> None:
    (bare / "torch.py").write_text("__version__ = '2.10.1+cpu'\n")
    assert imported(bare) == (
        f"ImportError: torch 2.10.1+cpu was found, but aimfair {aimfair.__version__} needs 2.11 or later: "
        "pip install --upgrade 'torch>=2.11'"
    )


def test_a_package_without_its_extension_says_how_to_get_it(bare: Path) -> None:
    said = imported(bare)
    assert said.startswith(f"ImportError: aimfair in {bare}/aimfair has no compiled extension for this Python 3.")
    assert said.endswith("run make build in a checkout; otherwise pip install --force-reinstall --no-deps aimfair")


@pytest.mark.parametrize(("cuda", "built"), [("13.0", "13.2.88"), ("13.2", "13.0.88"), (None, "13.0.88"), ("12.8", "")])
def test_cuda_of_the_same_major_version_or_of_one_side_alone(cuda: str | None, built: str) -> None:
    extension.refuse_other_cuda("2.13.0", cuda, built)


def test_another_major_version_of_cuda_is_refused() -> None:
    with pytest.raises(ImportError) as caught:
        extension.refuse_other_cuda("2.13.0+cu128", "12.8", "13.0.88")
    assert str(caught.value) == (
        f"torch 2.13.0+cu128 is built for CUDA 12.8, but this aimfair {aimfair.__version__} for CUDA 13.0.88: install "
        f"the wheel aimfair=={aimfair.__version__}+cu12 (docs/install.md), or a torch for CUDA 13"
    )


def test_any_other_failure_names_the_torch() -> None:
    error = extension.explain(ImportError("undefined symbol: aoti_torch_x", name="_C"), "2.99.0")
    assert f"does not load with torch 2.99.0 in {torch.__path__[0]}: undefined symbol: aoti_torch_x; pip" in str(error)
