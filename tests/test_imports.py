"""What may import what: the kernels and selective tuning stand alone, and a library has few importers."""

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "aimfair"


@cache
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


LAYERS = (
    "selective", "base", "cluster", "data", "prompts", "diffusion", "generation", "training", "methods", "evaluation",
    "tuning", "config", "run", "scan", "report", "stages", "ablation", "export", "commands",
)  # fmt: skip
"""Folders of the package from the bottom up: each may import those before it, and none after it."""


def test_folders_import_only_those_below():
    found = set()
    for path in PACKAGE.rglob("*/*.py"):
        folder = path.relative_to(PACKAGE).parts[0]
        for name in imports(path):
            package, _, rest = name.partition(".")
            imported = rest.split(".")[0]
            if package == "aimfair" and imported in LAYERS and LAYERS.index(imported) > LAYERS.index(folder):
                found.add((folder, imported))
    assert found == set()


def test_every_folder_has_a_layer():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(LAYERS)


@pytest.mark.parametrize(
    ("library", "where"),
    [
        ("diffusers", {"diffusion/load.py", "generation/filters/safety.py"}),
        ("openai", {"prompts/providers/endpoint.py"}),
        ("onnxruntime", {"diffusion/engines/onnx_runtime.py", "diffusion/engines/quantize.py"}),
        ("onnx", {"diffusion/engines/quantize.py", "generation/filters/onnx_file.py"}),
        ("onnxscript", set()),
        ("sklearn", {"data/digits.py"}),
        ("jinja2", {"report/template.py"}),
        (
            "scipy",
            {
                "ablation/premise.py",
                "evaluation/intervals.py",
                "evaluation/scores.py",
                "prompts/diversity.py",
                "scan/examine.py",
            },
        ),
        ("pyarrow", {"data/parquet_file.py"}),
        ("fsspec", {"base/storage.py"}),
        ("optuna", {"tuning/sampler.py"}),
        ("ray", {"cluster/ray_pool.py"}),
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
