"""The sections of a model card, in Markdown."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aimfair.config import Config
from aimfair.data.settings import DataSettings
from aimfair.evaluation.results import Interval, MethodResult, Results
from aimfair.export import usage
from aimfair.export.choose import Choice
from aimfair.export.model_files import Difference
from aimfair.export.onnx import FILE, TOLERANCE, Agreement
from aimfair.generation.summary import GenerationSummary
from aimfair.methods import BIASED
from aimfair.report import wording
from aimfair.report.tables import escape, markdown_table
from aimfair.report.wording import LABELS, percent, percents, spread

UNKNOWN = "unknown"
"""The license if none is given, as the hub spells it."""

_METRICS = ("accuracy", "worst_group_accuracy", "balanced_accuracy", "group_std", "eo_mean", "eo_max")


@dataclass(frozen=True)
class Facts:
    """The content of a card.

    Attributes:
        group_counts: split -> int64 [Y, A], images of each group.
        density: share of tuned weights; None: all, or the method selects none.
        prompts: number of prompts of all groups; None: the run has none.
        generation: numbers of generated and rejected images; None: unknown.
        synthetic: images in the balanced set; None: the run has none.
        agreement: of the ONNX file; None: there is none.
        preprocessing: difference of transformers' preprocessing from aimfair's; None: another library's model.
        environment: name -> version or description.
        digests: file -> SHA-256.
        license: an identifier of the hub.
    """

    config: Config
    results: Results
    choice: Choice
    group_counts: Mapping[str, npt.NDArray[np.int64]]
    density: float | None
    prompts: int | None
    generation: GenerationSummary | None
    synthetic: int | None
    agreement: Agreement | None
    preprocessing: Difference | None
    environment: Mapping[str, str]
    digests: Mapping[str, str]
    license: str = UNKNOWN

    @property
    def method(self) -> MethodResult:
        return self.results.methods[self.choice.method]


def sections(facts: Facts) -> dict[str, str]:
    """Heading -> Markdown; the introduction has no heading."""
    return {
        "": _introduction(facts),
        "How to use it": _usage(facts),
        "Before and after": _metrics(facts),
        "Groups": _groups(facts),
        **({"Other attributes": _audits(facts)} if facts.results.attributes else {}),
        "Data": _data(facts),
        "Method": _method(facts),
        **({"Synthetic images": _synthetic(facts)} if _saw_synthetic(facts) else {}),
        "Limits": _limits(facts),
        "How it was made": _reproducibility(facts),
    }


def _introduction(facts: Facts) -> str:
    config, choice = facts.config, facts.choice
    before, after = (
        of_seed(facts.results.methods[name], choice.seed).overall["worst_group_accuracy"]
        for name in (BIASED, choice.method)
    )
    names = ", ".join(escape(name) for name in facts.results.target_names)
    validation = "" if choice.validation_accuracy is None else f" ({percent(choice.validation_accuracy)})"
    change = (
        "This is the biased model itself, before any method."
        if choice.method == BIASED
        else f"Worst-group accuracy on the test images: {percent(before)} before, {percent(after)} after."
    )
    return (
        f"# {escape(config.title)}\n\n"
        f"An image classifier ({names}). Method `{choice.method}`, seed {choice.seed}: {choice.reason}{validation}."
        f" {change}\n\n"
        "aimfair wrote this card from the records of the run. Add what it cannot know, such as who is responsible and"
        " the intended use."
    )


def _usage(facts: Facts) -> str:
    config = facts.config
    parts = []
    if facts.preprocessing is not None:
        parts += [
            "With transformers, Pillow and torch (`python classify.py FOLDER PHOTO`):",
            _code(usage.TRANSFORMERS),
            _preprocessing(facts.preprocessing),
        ]
    if facts.agreement is not None:
        parts += [
            f"`{FILE}` (opset {facts.agreement.opset}, weights inside) takes `pixel_values`, float32 [N, 3,"
            f" {config.data.image_size}, {config.data.image_size}], normalized, any N, and returns `logits`,"
            f" float32 [N, {len(facts.results.target_names)}]. On {facts.agreement.images} test images, in batches of"
            f" {', '.join(map(str, facts.agreement.batches))}, its logits differ from PyTorch's by"
            f" at most {facts.agreement.difference:.1e} (the tolerance is {TOLERANCE:.0e}). With ONNX Runtime,"
            " NumPy and Pillow:",
            _code(usage.onnx(config.data, config.model)),
        ]
    if not parts:
        parts.append("`model.safetensors` contains the weights by name, in the format of the backbone's own library.")
    return "\n\n".join(parts)


def _preprocessing(difference: Difference) -> str:
    if difference.pixels < 1e-3 and difference.classes == 0:
        said = "gives the same pixels as aimfair"
    else:
        said = (
            f"differs from aimfair by at most {difference.pixels:.0f} of 255 grey levels and"
            f" {difference.probability:.4f} in class probabilities, and in the predicted class of {difference.classes}"
        )
    return (
        f'On {difference.images} test images this {said}. `backend="pil"` is required: the other one resizes'
        " differently. Transparent images differ: aimfair composites them on white, transformers does not."
    )


def _metrics(facts: Facts) -> str:
    results, choice = facts.results, facts.choice
    before, after = results.methods[BIASED], facts.method
    number = len(results.seeds)
    head = ["", "before", "after"]
    if number > 1:
        head += [f"before, {number} seeds", f"after, {number} seeds"]
    rows = []
    for metric in metrics_of(results):
        seeds = [of_seed(method, choice.seed) for method in (before, after)]
        row = [LABELS[metric], *(_with_interval(seed.overall[metric], seed.interval[metric]) for seed in seeds)]
        if number > 1:
            row += [spread(method.mean[metric], method.std[metric]) for method in (before, after)]
        rows.append(row)
    over_seeds = (
        "There is one seed, so the variation between training runs is unknown."
        if number == 1
        else "Over seeds: mean ± standard deviation of the values of each seed."
    )
    return (
        f"{markdown_table(head, rows)}\n\nOn the test images; “before” is the biased model of the same seed. Intervals:"
        f" {percent(results.confidence, 0)}, bootstrap of the test images. {over_seeds} Equalized odds are differences"
        " of rates, 0 is best; for two classes their mean is (dTPR + dFPR) / 2. The seed was not selected by these"
        " numbers."
    )


def metrics_of(results: Results) -> tuple[str, ...]:
    """Adds the worst group with images if some groups are empty, for which the strict worst group is undefined."""
    return (*_METRICS, *(["worst_present_group_accuracy"] if results.empty else []))


def _audits(facts: Facts) -> str:
    """The worst group by each audited attribute, and by its intersection with the protected one."""
    results, data = facts.results, facts.config.data
    protected = wording.TIMES.join([data.protected, *data.intersect_with])
    titled = [(name, audit) for name, audit in results.attributes.items()]
    titled += [(f"{protected}{wording.TIMES}{name}", audit) for name, audit in results.intersections.items()]
    rows = []
    for title, audit in titled:
        row = [escape(title)]
        for name in (BIASED, facts.choice.method):
            method = audit.methods[name]
            if method.worst_present_group is None:
                row.append(escape(""))
                continue
            y, a = method.worst_present_group
            small = " (small)" if audit.test_images[a][y] < results.small_group else ""
            group = escape(f"{results.target_names[y]} · {audit.value_names[a]}")
            row.append(f"{group}: {percent(method.by_group.mean[a][y])}{small}")
        sizes = [size for of_value in audit.test_images for size in of_value]
        few = sum(0 < size < results.small_group for size in sizes)
        rows.append([*row, f"{len(sizes)}, {audit.empty} empty, {few} small"])
    return (
        "The group (class and value) with the lowest test accuracy, mean over seeds, among groups with test"
        " images:\n\n"
        + markdown_table(["by", "worst before", "worst after", "groups"], rows)
        + f"\n\nSmall groups have fewer than {results.small_group} test images. The worst of many groups is low by"
        " chance alone."
    )


def _groups(facts: Facts) -> str:
    results, choice = facts.results, facts.choice
    before, after = results.methods[BIASED], facts.method
    rows = []
    for y, a in results.groups:
        small = results.test_images[a][y] < results.small_group
        pair = [of_seed(method, choice.seed).by_group[a][y] for method in (before, after)]
        rows.append(
            [
                f"{escape(results.target_names[y])} · {escape(results.protected_names[a])}",
                *(f"{int(facts.group_counts[split][y, a]):,}" for split in facts.group_counts),
                *map(percent, pair),
                spread(after.by_group.mean[a][y], after.by_group.std[a][y]),
                percents(after.by_group.interval[a][y]) + (" (small)" if small else ""),
            ]
        )
    head = ["group", *(f"{split} images" for split in facts.group_counts), "before", "after", "over seeds", "interval"]
    return (
        f"A group is a class and a value of the protected attribute. {_definition(facts.config.data)}\n\n"
        + markdown_table(head, rows)
        + "\n\nTest accuracy of each group; before and after are of this seed, the interval (Wilson's) is of the mean"
        " over seeds."
    )


def _data(facts: Facts) -> str:
    data = facts.config.data
    total = ", ".join(f"{int(counts.sum()):,} {split}" for split, counts in facts.group_counts.items())
    return "\n".join(
        [
            f"- Kind: `{data.kind}`, target {escape(data.target)}, protected {escape(data.protected)}.",
            f"- Images: {total}; {data.image_size} x {data.image_size} pixels, `fit: {data.fit}`.",
            f"- Bias: where the run makes a biased set, a minority group has {data.minority_ratio:.3g} times the images"
            f" of a majority group (`data.minority_ratio`); value {data.majority} of the protected attribute, counted"
            " from 0, is the majority in each class. The table of groups gives the counts.",
            f"- Seed of splits and choice: {data.seed}.",
            "- Images and pretrained weights belong to their owners: check their licenses before you distribute this"
            " model.",
        ]
    )


def _method(facts: Facts) -> str:
    config, choice = facts.config, facts.choice
    if choice.method == BIASED:
        return "None: plain training on the biased images."
    method = config.methods[choice.method]
    given = method.model_dump(mode="json", exclude_defaults=True)
    words = ", ".join(f"{escape(key)} {escape(str(value))}" for key, value in given.items()) or "defaults"
    return method.model_card(words, facts.density, facts.synthetic or 0)


def _synthetic(facts: Facts) -> str:
    generate, lines = facts.config.generate, []
    made = sum(group.made for group in facts.generation.groups) if facts.generation is not None else 0
    kept = sum(group.kept for group in facts.generation.groups) if facts.generation is not None else 0
    if generate.folder is not None:
        found = f": {kept:,} of the {made:,} in a folder, balanced and biased sets together" if made else ""
        lines.append(f"- Not generated by this run nor from its prompts, but copied{found}.")
    else:
        lines.append(
            f"- Model {escape(_public(generate.model))}, {generate.steps} steps, guidance {generate.guidance_scale:g},"
            f" scheduler `{generate.scheduler}`, seed {generate.seed}."
        )
        if facts.prompts is not None:
            lines.append(
                f"- {facts.prompts:,} prompts, the same contexts in every group (`{facts.config.prompts.provider}`)."
            )
    if facts.synthetic is not None:
        lines.append(f"- {facts.synthetic:,} images in the balanced set.")
    if facts.generation is not None:
        rejected: Counter[str] = Counter()
        for group in facts.generation.groups:
            rejected.update(group.rejected)
        told = ", ".join(f"{escape(reason)} {count:,}" for reason, count in sorted(rejected.items())) or "none"
        if generate.folder is None:
            lines.append(f"- {made:,} images made; rejected by filters: {told}.")
        elif rejected:
            lines.append(f"- Not copied: {told}.")
    return "\n".join(lines)


def _saw_synthetic(facts: Facts) -> bool:
    name = facts.choice.method
    return name != BIASED and facts.config.methods[name].uses_synthetic


def _limits(facts: Facts) -> str:
    results = facts.results
    lines = [
        "Not for decisions about people: the metrics measure agreement with the labels of one data set.",
        "Groups are those of the data set. Labels of gender, race or age are annotators' judgements of an image, not a"
        " person's identity, and people who fit none of them are not represented.",
        "The metrics hold for the test images. Measure again before use with other cameras, places or people.",
        "Fairness in one attribute says nothing about another, nor about their intersections.",
        *(
            ["Synthetic images differ from real ones and have biases of their own, which training may transfer."]
            if _saw_synthetic(facts)
            else []
        ),
        *(escape(caution) for caution in results.cautions),
    ]
    return "\n".join(f"- {line}" for line in lines)


def _reproducibility(facts: Facts) -> str:
    versions = [[escape(name), escape(value)] for name, value in facts.environment.items()]
    digests = [[escape(name), f"`{value}`"] for name, value in facts.digests.items()]
    return "\n\n".join(
        [
            f"Seeds {', '.join(map(str, facts.results.seeds))}; this model has seed {facts.choice.seed}.",
            markdown_table(["version of", "at export"], versions),
            markdown_table(["SHA-256 of", ""], digests),
        ]
    )


# -- words -------------------------------------------------------------------------------------------------------------


def _definition(data: DataSettings) -> str:
    """How class and protected attribute were labeled."""
    if data.kind == "digits":
        return "The protected attribute is the ink in which a handwritten digit was coloured, at random."
    if data.kind == "celeba":
        return "Both are binary attributes of CelebA, as judged by annotators from the image, not by the people shown."
    if data.kind == "utkface":
        return (
            "Both are parts of UTKFace's file names, estimated by a model and checked by annotators, not by the people"
            " shown."
        )
    return "Both are columns of the data set's own table; ask its authors how they were labeled."


def _public(name: str) -> str:
    """A model's name without its parent folders."""
    return f"a folder named {Path(name).name!r}" if Path(name).is_absolute() else name


def of_seed(method: MethodResult, seed: int) -> Any:
    return next(one for one in method.seeds if one.seed == seed)


def _with_interval(value: float, interval: Interval) -> str:
    between = percents(interval)
    return f"{percent(value)} ({between})" if between else percent(value)


def _code(text: str) -> str:
    return f"```python\n{text}```"
