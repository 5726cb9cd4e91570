"""What a report was made with: versions and hardware."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("aimfair", "torch", "transformers", "diffusers", "safetensors", "numpy", "scikit-learn")


def describe() -> dict[str, str]:
    """Name -> version or description; packages that are not installed are left out."""
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
    """The name that Linux gives, or what the platform calls it."""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
