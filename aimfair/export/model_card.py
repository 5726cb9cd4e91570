"""README.md, the model card: metadata, then how to use the model, what it was trained on, metrics and limits."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aimfair.base.errors import AimfairError
from aimfair.base.libraries import optional
from aimfair.config import Config
from aimfair.data.settings import DataSettings
from aimfair.evaluation.compare import TIMES
from aimfair.evaluation.flips import Flips
from aimfair.evaluation.results import Interval, MethodResult, Results, SeedResult
from aimfair.export import usage
from aimfair.export.model_files import Difference
from aimfair.export.onnx import Agreement
from aimfair.generation.summary import GenerationSummary
from aimfair.methods import BIASED
from aimfair.report.tables import escape, markdown_table, one_line
from aimfair.report.wording import FLIP_VERDICTS, LABELS, between, judge, percent, percents, points, spread

CARD = "README.md"

UNKNOWN = "unknown"
"""The license if none is given, as the hub spells it."""

_METRICS = ("accuracy", "worst_group_accuracy", "balanced_accuracy", "group_std", "eo_mean", "eo_max")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


@dataclass(frozen=True)
class Choice:
    """One model of a run.

    Attributes:
        folder: of the model in the run.
        reason: why this seed was chosen.
        validation_accuracy: of the kept weights; None without a training history.
    """

    method: str
    seed: int
    folder: Path
    reason: str
    validation_accuracy: float | None


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
        flips: on held-out pairs of synthetic images; None: the run has none.
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
    flips: Flips | None = None

    @property
    def methods(self) -> tuple[MethodResult, MethodResult]:
        """The biased model and the chosen one."""
        return self.results.methods[BIASED], self.results.methods[self.choice.method]

    @property
    def models(self) -> tuple[SeedResult, SeedResult]:
        """The same, of the chosen seed."""
        before, after = (method.of_seed(self.choice.seed) for method in self.methods)
        return before, after


def render(facts: Facts) -> str:
    """The card: metadata in YAML, then Markdown, with every string of the run escaped.

    Raises:
        AimfairError: huggingface_hub does not read the same metadata back.
    """
    with optional("the model card", "huggingface_hub"):
        from huggingface_hub import ModelCard

    metadata = _metadata(facts)
    body = "\n".join(
        f"## {heading}\n\n{text}\n" if heading else f"{text}\n" for heading, text in sections(facts).items()
    )
    text = f"---\n{metadata.to_yaml(line_break=chr(10)).strip()}\n---\n\n{body}"
    try:
        found = ModelCard(text).data.to_dict()  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise AimfairError(f"{CARD}: huggingface_hub rejects its metadata: {error}") from error
    if found != metadata.to_dict():  # type: ignore[no-untyped-call]
        raise AimfairError(f"{CARD}: huggingface_hub reads other metadata back than written")
    return text


def _metadata(facts: Facts) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    config, seed = facts.config, facts.models[1]
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            dataset_type=config.data.kind,
            dataset_name=one_line(config.title) or "untitled",
            dataset_split="test",
            metric_type=metric,
            metric_name=LABELS[metric],
            metric_value=round(seed.overall[metric], 6),
        )
        for metric in metrics_of(facts.results)
        if not math.isnan(seed.overall[metric])
    ]
    of_transformers = facts.preprocessing is not None
    values: dict[str, Any] = {
        "model_name": f"{one_line(config.title) or 'untitled'}: {facts.choice.method}",
        "license": facts.license,
        "library_name": "transformers" if of_transformers else None,
        "pipeline_tag": "image-classification",
        "tags": ["fairness", "debiasing", "aimfair", *(["onnx"] if facts.agreement else [])],
        "base_model": _hub_id(config.model.pretrained),
        "metrics": [metric for metric in ("accuracy",) if results],
        "eval_results": results or None,
    }
    return ModelCardData(**{key: value for key, value in values.items() if value})


def _hub_id(name: str | None) -> str | None:
    """The id on the hub that ``model.pretrained`` names; None for folders and models of other libraries."""
    plain = (name or "").removeprefix("hf:")
    return plain if _HUB_ID.fullmatch(plain) else None


# -- sections ----------------------------------------------------------------------------------------------------------


def sections(facts: Facts) -> dict[str, str]:
    """Heading -> Markdown; the introduction has no heading."""
    return {
        "": _introduction(facts),
        "How to use it": usage.section(
            facts.config.data, facts.config.model, len(facts.results.target_names), facts.preprocessing, facts.agreement
        ),
        "Before and after": _metrics(facts),
        "Groups": _groups(facts),
        **({"Other attributes": _audits(facts)} if facts.results.attributes else {}),
        **({"When the protected attribute alone changes": _flips(facts, facts.flips)} if facts.flips else {}),
        "Data": _data(facts),
        "Method": _method(facts),
        **({"Synthetic images": _synthetic(facts)} if _saw_synthetic(facts) else {}),
        "Limits": _limits(facts),
        "How it was made": _reproducibility(facts),
    }


def _introduction(facts: Facts) -> str:
    config, choice = facts.config, facts.choice
    before, after = (model.overall["worst_group_accuracy"] for model in facts.models)
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


def _metrics(facts: Facts) -> str:
    results, number = facts.results, len(facts.results.seeds)
    head = ["", "before", "after"]
    if number > 1:
        head += [f"before, {number} seeds", f"after, {number} seeds"]
    rows = []
    for metric in metrics_of(results):
        row = [LABELS[metric], *(_with_interval(one.overall[metric], one.interval[metric]) for one in facts.models)]
        if number > 1:
            row += [spread(method.mean[metric], method.std[metric]) for method in facts.methods]
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
    protected = TIMES.join([data.protected, *data.intersect_with])
    titled = [(name, audit) for name, audit in results.attributes.items()]
    titled += [(f"{protected}{TIMES}{name}", audit) for name, audit in results.intersections.items()]
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


def _flips(facts: Facts, flips: Flips) -> str:
    """On how many held-out pairs the models change their mind."""
    names = list(dict.fromkeys((BIASED, facts.choice.method)))
    number, place = len(flips.seeds), flips.seeds.index(facts.choice.seed)
    head = ["", "pairs that flip", *([f"{number} seeds"] if number > 1 else []), "interval"]
    head += [f"accuracy, {escape(value)}" for value in flips.protected_names]
    rows = []
    for name in names:
        one = flips.methods[name]
        row = ["before" if name == BIASED else "after", percent(one.seeds[place])]
        row += [spread(one.mean, one.std)] if number > 1 else []
        rows.append([*row, percents(one.interval), *(percent(accuracy) for accuracy in one.accuracy)])
    versus = flips.methods[names[-1]].versus_biased
    verdict = (
        ""
        if versus is None
        else f" After minus before: {points(versus.mean)} points"
        f" ({between(versus.over_images)} over pairs), "
        f"{FLIP_VERDICTS[judge('flips', versus, facts.results.small_group)]}."
    )
    return (
        f"{flips.total:,} pairs of synthetic images that no training has seen differ in {escape(flips.protected)}"
        " alone, as far as the text-to-image model changes nothing else. A pair flips if the model predicts different"
        f" classes for its images.\n\n{markdown_table(head, rows)}\n\nThe first column is of this seed; interval"
        f" ({percent(flips.confidence, 0)}) and accuracies are of the mean over seeds.{verdict}"
    )


def _groups(facts: Facts) -> str:
    results, after = facts.results, facts.methods[1].by_group
    rows = []
    for y, a in results.groups:
        small = results.test_images[a][y] < results.small_group
        rows.append(
            [
                f"{escape(results.target_names[y])} · {escape(results.protected_names[a])}",
                *(f"{int(facts.group_counts[split][y, a]):,}" for split in facts.group_counts),
                *(percent(model.by_group[a][y]) for model in facts.models),
                spread(after.mean[a][y], after.std[a][y]),
                percents(after.interval[a][y]) + (" (small)" if small else ""),
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
    if generate.folder is not None:
        found = ""
        if facts.generation is not None:
            kept, made = facts.generation.kept, facts.generation.made
            found = f": {kept:,} of the {made:,} in a folder, balanced and biased sets together"
        lines.append(f"- Not generated by this run nor from its prompts, but copied{found}.")
    elif generate.emoji is not None:
        lines.append(f"- Emoji in style {generate.emoji.style}, degradation {generate.emoji.degradation:g}.")
    else:
        lines.append(
            f"- Model {escape(_public(generate.model))}, {generate.steps} steps, guidance {generate.guidance_scale:g},"
            f" scheduler `{generate.scheduler}`, seed {generate.seed}."
        )
        if facts.prompts is not None:
            lines.append(
                f"- {facts.prompts:,} prompts, the same contexts in every group (`{facts.config.prompts.provider}`)."
            )
    if generate.pairs is not None:
        edits = (
            "" if generate.pairs.strength is None else f", real images edited at strength {generate.pairs.strength:g}"
        )
        lines.append(f"- The balanced set is of counterfactual pairs, an image for each protected value{edits}.")
    if facts.synthetic is not None:
        lines.append(f"- {facts.synthetic:,} images in the balanced set.")
    if facts.generation is not None:
        made, rejected = facts.generation.made, facts.generation.rejected
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
    if data.kind == "emoji":
        return "Both are parts of the code points of people emoji, which are drawings."
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


def _with_interval(value: float, interval: Interval) -> str:
    between = percents(interval)
    return f"{percent(value)} ({between})" if between else percent(value)
