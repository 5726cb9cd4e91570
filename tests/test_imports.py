"""What may import what: the kernels and selective tuning stand alone, and a library has few importers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "aimfair"


def imports(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def importers(library: str) -> set[str]:
    return {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(name.split(".")[0] == library for name in imports(path))
    }


def test_selective_tuning_knows_nothing_of_the_rest():
    allowed = {"aimfair", "aimfair.build", "aimfair.files", "aimfair.layout", "aimfair.ops", "aimfair._C"}
    for path in [
        *(PACKAGE / "selective").glob("*.py"),
        PACKAGE / "ops.py",
        PACKAGE / "layout.py",
        PACKAGE / "files.py",
    ]:
        ours = {name for name in imports(path) if name.split(".")[0] == "aimfair"}
        assert {name for name in ours - allowed if not name.startswith("aimfair.selective")} == set(), path


@pytest.mark.parametrize(
    ("library", "where"),
    [
        ("diffusers", {"generation/diffusion.py", "generation/filters/safety.py"}),
        ("openai", {"generation/providers/endpoint.py"}),
        ("onnxruntime", {"generation/engines/onnx_runtime.py"}),
        ("onnx", set()),
        ("onnxscript", set()),
        ("sklearn", {"data/digits.py"}),
        ("jinja2", {"report/template.py"}),
        ("scipy", {"evaluation/intervals.py"}),
        ("pyarrow", {"data/parquet.py"}),
        ("torchvision", set()),
    ],
)
def test_a_library_has_few_importers(library, where):
    assert importers(library) == where


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_optional_backbones_have_one_importer(library):
    """They are imported by name, so that what is missing can be said."""
    asking = [path for path in PACKAGE.rglob("*.py") if f'import_library("{library}")' in path.read_text()]
    assert [path.relative_to(PACKAGE).as_posix() for path in asking] == [f"training/backbones/{library}.py"]


def test_selective_tuning_loads_no_other_library():
    program = """
import sys
import aimfair
aimfair.Sensitivity, aimfair.ParameterMask, aimfair.MaskedAdamW
unwanted = {"pydantic", "transformers", "diffusers", "sklearn", "PIL", "rich", "yaml", "jinja2"} & set(sys.modules)
assert not unwanted, unwanted
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
