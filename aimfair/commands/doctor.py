"""``aimfair doctor``: what is installed, whether it works, and the command that fixes what does not."""

import argparse
import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import aimfair
from aimfair.commands import imports
from aimfair.commands.settings import Overrides, add_run, refuse_overrides

_DISK_BYTES = 2 << 30
"""Free space below which a run may not end: images, and three seeds of models."""

_REINSTALL = "pip install --no-build-isolation --editable ."

_MODULES = {
    "diffusers": "diffusers:StableDiffusionPipeline",
    "pillow": "PIL.Image",
    "pyarrow": "pyarrow.parquet",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn.datasets",
    "scipy": "scipy.stats",
    "transformers": "transformers:PreTrainedModel",
}
"""Package -> what is imported of it, if not a module of its name: what loads its compiled code and dependencies."""

_OF_DEVELOPERS = ("dev", "docs")
"""Extras that no command of aimfair uses."""

_COLOURS = {"fine": "\033[32m{}\033[0m", "missing": "\033[33m{}\033[0m", "broken": "\033[1;31m{}\033[0m"}


@dataclass(frozen=True)
class Check:
    """One line of the table.

    ``missing`` is something that only some uses need. ``broken`` is something that all do, or that is installed and
    does not work, as others import it.
    """

    name: str
    state: Literal["fine", "missing", "broken"]
    found: str
    remedy: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)


def main(options: argparse.Namespace, overrides: Overrides) -> int:
    refuse_overrides("doctor", overrides)
    return examine(options.run or Path("runs"))


def examine(folder: Path) -> int:
    """Prints every check, with the disk under ``folder``; 1 if something is broken, else 0."""
    checks = list(_checks(folder))
    width = max(len(check.name) for check in checks)
    for check in checks:
        state = f"{check.state:<7}"
        coloured = _COLOURS[check.state].format(state) if sys.stdout.isatty() else state
        print(f"{check.name:<{width}}  {coloured}  {check.found}")
    for remedy in dict.fromkeys(check.remedy for check in checks if check.remedy):
        print(f"to fix it: {remedy}")
    return int(any(check.state == "broken" for check in checks))


def _checks(folder: Path) -> Iterator[Check]:
    yield Check("aimfair", "fine", f"{aimfair.__version__} at {Path(aimfair.__file__).parent}")
    yield Check("Python", "fine", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Check("processors", "fine", str(len(os.sched_getaffinity(0))))
    try:
        yield from packages(importlib.metadata.requires("aimfair") or [])
    except importlib.metadata.PackageNotFoundError:
        yield Check("packages", "broken", "aimfair is not installed: its requirements are unknown", _REINSTALL)
    yield from (_guarded(name, check) for name, check in _HARDWARE.items())
    yield disk(folder)


def packages(requirements: list[str]) -> Iterator[Check]:
    """A check for each required package, such as ``torch>=2.11`` or ``jinja2; extra == "report"``, which imports it."""
    extras: dict[str, list[str]] = {}  # requirement -> the extras with it
    for requirement in requirements:
        extra = re.search(r"extra == [\"']([^\"']+)", requirement)
        tool = extra is not None and extra[1] in _OF_DEVELOPERS
        if not tool and not requirement.startswith("aimfair["):  # an extra that names another one
            needed_for = extras.setdefault(requirement.split(";")[0].strip(), [])
            needed_for += [extra[1]] if extra else []
    names = {requirement: re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0] for requirement in extras}
    versions = {name: version for name in names.values() if (version := _version(name))}
    failed = imports.failures([_module(name) for name in versions])
    for requirement, name in names.items():
        needed_for = extras[requirement]
        if name not in versions:
            found = f"not installed, needed for {', '.join(needed_for)}" if needed_for else "not installed"
            yield Check(name, "missing" if needed_for else "broken", found, f"pip install '{requirement}'")
        elif failure := failed.get(_module(name)):
            remedy = failure.remedy or f"pip install --force-reinstall '{requirement}'"
            yield Check(name, "broken", failure.found, remedy)
        elif _is_older(versions[name], requirement):
            yield Check(name, "broken", f"{versions[name]}, too old", f"pip install --upgrade '{requirement}'")
        else:
            yield Check(name, "fine", versions[name])


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_older(version: str, requirement: str) -> bool:
    """Whether a version is below the minimum that a requirement states."""
    minimum = re.search(r">=([\d.]+)", requirement)
    return minimum is not None and _release(version) < _release(minimum[1])


def _release(version: str) -> list[int]:
    """[2, 13, 0] for 2.13.0+cpu."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return [int(number) for number in numbers[0].split(".")] if numbers else []


def _module(package: str) -> str:
    """What to import to know that a package works."""
    return _MODULES.get(package, package.replace("-", "_"))


def disk(folder: Path) -> Check:
    """Free space where a run in ``folder``, which need not exist, would be."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        return Check(
            "disk", "broken", f"{existing} is a file, expected a folder", "choose another directory with --run"
        )
    free = shutil.disk_usage(existing).free
    found = f"{free / (1 << 30):.1f} GB free at {existing}"
    if not os.access(existing, os.W_OK):
        return Check("disk", "broken", f"{existing} cannot be written to", "choose another directory with --run")
    if free < _DISK_BYTES:
        return Check("disk", "missing", found, "free some, or choose another directory with --run")
    return Check("disk", "fine", found)


# -- torch and the kernels ---------------------------------------------------------------------------------------------


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    """A check that raises has failed."""
    try:
        return check()
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        return Check(name, "broken", f"{type(error).__name__}: {first_line}", _REINSTALL)


def _extension() -> Check:
    from aimfair.selective.build import build_info

    info = build_info()
    cuda = f"CUDA {info['cuda']} for {info['cuda_architectures']}" if info["cuda"] else "no CUDA"
    return Check(
        "compiled kernels", "fine", f"{info['compiler']}, {info['build_type']}, torch >= {info['torch_abi']}, {cuda}"
    )


def _cpu_path() -> Check:
    from aimfair.selective.build import build_info

    info = build_info()
    return Check("CPU path", "fine", f"{info['cpu_path']} (of {', '.join(info['cpu_paths'])})")


def _gpu() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check("GPU", "fine", "none; everything runs on the CPU")
    properties = torch.cuda.get_device_properties(0)
    return Check("GPU", "fine", f"{properties.name}, {properties.total_memory / (1 << 30):.0f} GB")


def kernels() -> Check:
    """Whether the kernels of every CPU path, and of the GPU, give the reference's results on a small problem."""
    import torch

    from aimfair.base.device import tuning_device
    from aimfair.selective.build import build_info, cpu_paths, set_cpu_path
    from aimfair.selective.self_check import wrong_kernels

    current = build_info()["cpu_path"]
    found = {}
    try:
        for path in cpu_paths():
            set_cpu_path(path)
            found[path] = wrong_kernels(torch.device("cpu"))
    finally:
        set_cpu_path(current)
    if (device := tuning_device("auto")).type == "cuda":
        found["CUDA"] = wrong_kernels(device)
    if wrong := [f"{name}: {', '.join(kernels)}" for name, kernels in found.items() if kernels]:
        return Check("kernels", "broken", f"{'; '.join(wrong)} differ from the reference", _REINSTALL)
    return Check("kernels", "fine", f"equal to the reference, bit for bit: {', '.join(found)}")


_HARDWARE = {"compiled kernels": _extension, "CPU path": _cpu_path, "GPU": _gpu, "kernels": kernels}
