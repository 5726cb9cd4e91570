"""README.md, the model card: metadata, then how to use the model, what it was trained on, metrics and limits."""

import math
import re
from typing import Any

from aimfair.base.errors import AimfairError
from aimfair.export.card_sections import Facts, metrics_of, of_seed, sections
from aimfair.report.tables import one_line
from aimfair.report.wording import LABELS

CARD = "README.md"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


def render(facts: Facts) -> str:
    """The card: metadata in YAML, then Markdown, with every string of the run escaped.

    Raises:
        AimfairError: huggingface_hub does not read the same metadata back.
    """
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

    config, seed = facts.config, of_seed(facts.method, facts.choice.seed)
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
