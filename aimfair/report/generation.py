"""How the synthetic images were made, or where they were copied from: a row for each group, and how fast it went."""

from dataclasses import dataclass
from typing import Any

from aimfair.base.progress import duration
from aimfair.generation.summary import GenerationSummary, Speed


@dataclass(frozen=True)
class Row:
    """The group (y, a); ``rejected`` has a count for each of the reasons."""

    y: int
    a: int
    made: int
    kept: int
    rejected: list[int]


def describe(summary: GenerationSummary | None) -> dict[str, Any]:
    """What generation.html shows; without a summary it says so."""
    groups = summary.groups if summary else []
    reasons = sorted({reason for group in groups for reason in group.rejected})
    return {
        "folder": summary.folder if summary else None,
        "made": sum(group.made for group in groups),
        "kept": sum(group.kept for group in groups),
        "reasons": reasons,
        "rows": [
            Row(group.y, group.a, group.made, group.kept, [group.rejected.get(reason, 0) for reason in reasons])
            for group in groups
        ],
        "facts": _facts(summary.speed) if summary and summary.speed else {},
    }


def _facts(speed: Speed) -> dict[str, str]:
    made = f"{speed.images:,} images in {duration(speed.seconds)}"
    facts = {"Speed, all in all": f"{speed.images / max(speed.seconds, 1e-9):,.1f} images/s ({made})"}
    if speed.sampling:
        facts["Sampling only"] = f"{speed.images / speed.sampling:,.1f} images/s"
    if speed.filters >= 0.05:
        facts["Filters beside the sampler"] = duration(speed.filters)
    facts["Waiting for files"] = duration(speed.stalled)
    if speed.processes > 1:
        facts["Processes"] = f"{speed.processes}; times are means over them"
    return facts
