"""Coverage and diversity of synthetic images, over their number, their style and their degradation."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from aimfair.base.seeds import generator
from aimfair.data.images import ImageSet
from aimfair.training.predict import predict
from tools.first_experiments.drawing import Panel, Point, Series, grid
from tools.first_experiments.rows import Case, Row, complete
from tools.first_experiments.support import density_and_coverage, expected_coverage, mean_distance, vendi_score
from tools.premise_study.analysis import Values
from tools.premise_study.domains import GROUPS, Regime, images_of
from tools.premise_study.methods import Workshop
from tools.premise_study.run import read

REPLICATES = 4

K = 5

COUNTS = (20, 50, 76, 200)
"""Synthetic images of a group; 76 is as many as there are emoji of it."""

DEGRADATIONS = (0.0, 0.2, 0.5)

DOMAINS = {"twemoji": "same style", "noto": "other style", "faces": "faces"}

EMOJI = ("twemoji", "noto")

_OF_EMOJI = ("women, light", "women, dark", "men, light", "men, dark")
NAMES = {"twemoji": _OF_EMOJI, "noto": _OF_EMOJI, "faces": ("women, not white", "women, white", "men, not white",
                                                            "men, white")}  # fmt: skip
"""Of :data:`GROUPS`."""

ROWS = "coverage.jsonl"


# -- measuring ---------------------------------------------------------------------------------------------------------


def run(folder: Path, faces: Path | None) -> None:
    for replicate in range(REPLICATES):
        _replicate(folder, replicate, EMOJI, None)
        if faces is not None:
            _replicate(folder, replicate, ("faces",), faces)


def _replicate(folder: Path, replicate: int, domains: tuple[str, ...], faces: Path | None) -> None:
    @cache
    def shop() -> Workshop:
        regime = Regime(domain=domains[0])
        return Workshop(regime, replicate, images_of(regime, replicate, faces), final=True)

    cases = [
        {"replicate": replicate, "domain": domain, "degradation": degradation}
        for domain in domains
        for degradation in DEGRADATIONS
    ]
    complete(folder / ROWS, cases, lambda case: _measured(shop(), case, faces))


def _measured(shop: Workshop, case: Case, faces: Path | None) -> Row:
    """For each count the measures of the groups, in the order of :data:`GROUPS`."""
    regime = Regime(domain=case["domain"], degradation=case["degradation"], per_group=max(COUNTS))
    synthetic = images_of(regime, shop.replicate, faces).balanced
    real = shop.images.test
    real_features, features = features_of(shop, real), features_of(shop, synthetic)
    found: dict[str, list[dict[str, float]]] = {str(count): [] for count in COUNTS}
    for group in GROUPS:
        of_real = generator(shop.replicate, "study", "real", *group).permutation(real_features[members(real, group)])
        for count in COUNTS:
            of = features[members(synthetic, group)[:count]]
            density, coverage = density_and_coverage(of_real, of, K)
            found[str(count)].append({"real": len(of_real), "density": density, "coverage": coverage,
                                      "vendi": vendi_score(of), "real_vendi": vendi_score(of_real[:count]),
                                      "distance": mean_distance(of) / mean_distance(of_real)})  # fmt: skip
    return {"counts": found}


def members(images: ImageSet, group: tuple[int, int]) -> Values:
    return np.flatnonzero((images.target == group[0]) & (images.protected == group[1]))


def features_of(shop: Workshop, images: ImageSet) -> Values:
    """What the head of the biased model is given: float64 [N, D]."""
    model = shop.model()
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    seen: list[Tensor] = []
    head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    predict(model, images, shop.settings, batch_size=256, device=torch.device("cpu"))
    return torch.cat(seen).double().numpy()


# -- what it says ------------------------------------------------------------------------------------------------------

MEASURES = {
    "density": "density",
    "coverage": "coverage",
    "vendi": "Vendi score",
    "real_vendi": "of as many real images",
    "distance": "distance / that of real images",
}


def means(folder: Path) -> dict[tuple[str, float, int], dict[str, float]]:
    """Domain, degradation and count -> measures, means over groups and replicates."""
    found: dict[tuple[str, float, int], list[dict[str, float]]] = {}
    for row in read(folder / ROWS):
        for count, groups in row["counts"].items():
            found.setdefault((row["case"]["domain"], row["case"]["degradation"], int(count)), []).extend(groups)
    return {
        key: {name: float(np.mean([group[name] for group in groups])) for name in (*MEASURES, "real")}
        for key, groups in found.items()
    }


def by_group(folder: Path, domain: str) -> list[list[str]]:
    """Density, coverage and Vendi score of each of :data:`GROUPS`, with 76 images that are not degraded."""
    rows = [
        row["counts"]["76"]
        for row in read(folder / ROWS)
        if (row["case"]["domain"], row["case"]["degradation"]) == (domain, 0.0)
    ]
    names = ("density", "coverage", "vendi")
    return [[f"{np.mean([row[group][name] for row in rows]):.2f}" for name in names] for group in range(len(GROUPS))]


def tables(folder: Path) -> Iterator[str]:
    of = means(folder)
    yield f"| images | degradation | per group | {' | '.join(MEASURES.values())} | coverage if alike |"
    yield "|---|---:|---:|" + "---:|" * (len(MEASURES) + 1)
    for (domain, degradation, count), values in of.items():
        cells = [f"{values[name]:.2f}" for name in MEASURES]
        alike = expected_coverage(round(values["real"]), count, K)
        yield f"| {DOMAINS[domain]} | {degradation:g} | {count} | {' | '.join(cells)} | {alike:.2f} |"
    yield ""
    yield "| 76 per group, no degradation | group | density | coverage | Vendi score |"
    yield "|---|---|---:|---:|---:|"
    for domain in dict.fromkeys(key[0] for key in of):
        for group, cells in zip(NAMES[domain], by_group(folder, domain), strict=True):
            yield f"| {DOMAINS[domain]} | {group} | {' | '.join(cells)} |"
    yield ""


def figures(folder: Path) -> dict[str, str]:
    of = means(folder)
    panels = []
    for name in ("coverage", "vendi"):
        for domain in dict.fromkeys(key[0] for key in of):
            series = [
                Series(f"degraded {degradation:g}", [Point(count, of[domain, degradation, count][name])
                                                     for count in COUNTS])
                for degradation in DEGRADATIONS
            ]  # fmt: skip
            if name == "coverage":
                real = round(of[domain, 0.0, COUNTS[0]]["real"])
                alike = [Point(count, expected_coverage(real, count, K)) for count in COUNTS]
            else:
                alike = [Point(count, of[domain, 0.0, count]["real_vendi"]) for count in COUNTS]
            series.append(Series("if alike", alike, dashed=True))
            panels.append(Panel(DOMAINS[domain], "images of a group", MEASURES[name], series, log_x=True))
    return {"coverage.svg": grid(panels, columns=len(panels) // 2)}
