"""What the pages of reports and ablations share: their templates, and the facts on versions and hardware.

Every string is escaped, and an undefined name in a template is an error.
"""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup

import aimfair
from aimfair.base.progress import duration
from aimfair.evaluation.metrics import Counts
from aimfair.report import wording
from aimfair.report.material import data_uri

_PACKAGES = ("aimfair", "torch", "transformers", "diffusers", "safetensors", "numpy", "scikit-learn")


def render(name: str, **context: object) -> str:
    """The page of the template ``name``; the context also has style, version, date and environment."""
    page = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters |= {
        "percent": wording.percent,
        "percents": wording.percents,
        "spread": wording.spread,
        "points": wording.points,
        "between": wording.between,
        "duration": duration,
        "breakable": _breakable,
        "data_uri": data_uri,
    }
    return page.get_template(name).render(
        style=Markup(_source("page.css")),
        version=aimfair.__version__,
        date=datetime.now(UTC),
        environment=environment(),
        **context,
    )


def _breakable(name: str) -> Markup:
    """A name that may be broken after underscores, where a browser would not."""
    return Markup("_<wbr>").join(name.split("_"))


def _source(name: str) -> str:
    return files("aimfair.report").joinpath(name).read_text(encoding="utf-8")


Confusion = tuple[str, list[tuple[str, int, list[float]]]]
"""A value, and of each true class its name, how many there are, and the shares of the predicted classes."""


def confusions(
    counts: Counts, sizes: Sequence[Sequence[int]], classes: Sequence[str], values: Sequence[str]
) -> list[Confusion]:
    """Of counts [A, Y, K], with how many there are [A][Y]; shares of none are NaN."""
    with np.errstate(invalid="ignore"):
        shares = counts / counts.sum(axis=2, keepdims=True)
    return [
        (value, [(name, sizes[a][y], shares[a, y].tolist()) for y, name in enumerate(classes)])
        for a, value in enumerate(values)
    ]


def environment() -> dict[str, str]:
    """Name -> version or description; packages that are not installed are omitted."""
    import torch

    facts = {"Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    facts["System"] = f"{platform.system()} {platform.release()}, {platform.machine()}"
    facts["Processor"] = f"{_processor()}, {os.cpu_count()} logical cores"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        facts["GPU"] = f"{', '.join(names)} (CUDA {torch.version.cuda})"
    return facts


def _processor() -> str:
    """The name in /proc/cpuinfo, or that of the platform module."""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
