"""Settings of a method."""

from typing import Literal, Self

from pydantic import Field, model_validator

from aimfair.base.settings import Problem, Settings
from aimfair.selective.choices import SIZES, Criterion, Granularity, Rule

BIASED = "biased"
"""The name, beside those of methods, of the model that no method has touched."""

SELECTION = (
    "rule", "criterion", "domain_criterion", "granularity", "density", "density_of", "k", "bias", "domain",
    "source", "head", "blocks", "freeze",
)  # fmt: skip
"""The settings of a method that decide its mask."""

_OF_KINDS = {
    **dict.fromkeys(SELECTION, ("tune",)),
    "batchnorm": ("tune", "dfr"),
    "head": ("tune", "dfr"),
    "step_size": ("group_dro",),
    "adjustment": ("group_dro",),
    "first_epochs": ("jtt",),
    "upweight": ("jtt",),
    "balanced_from": ("dfr",),
}
"""The kinds that a key has a meaning for; those it is not said of have one for all."""


class MethodSettings(Settings):
    """What one method trains, and on what; of ``tune``, how it chooses the weights, in the words of
    aimfair.Sensitivity.select."""

    kind: Literal[
        "tune", "erm", "synthetic_only", "real_and_synthetic", "balanced_resampling", "group_dro", "jtt", "dfr"
    ] = Field(
        "tune",
        description="tune: selected weights of the biased model, on balanced synthetic images; the others are baselines"
        " from the literature, see docs",
    )
    rule: Rule = Field("intersection", description="how scores become a selection")
    criterion: Criterion = Field("difference", description="bias score")
    domain_criterion: Criterion | None = Field(None, description="domain score; null: as criterion, where that works")
    granularity: Granularity = Field("element", description="what is selected as one")
    density: float | None = Field(None, gt=0, le=1, description="share that is selected")
    density_of: Literal["units", "weights"] = Field(
        "units",
        description="top_k, ratio, random: what density is a share of; weights: the fewest rows or tensors that hold it"
        " (intersection and budget always count weights)",
    )
    k: int | None = Field(None, ge=1, description="number that is selected")
    bias: float | int | None = Field(
        None, gt=0, description="intersection: top share (1.0 is all) or number (1 is one) by bias score"
    )
    domain: float | int | None = Field(
        None, gt=0, description="intersection: bottom share (1.0 is all) or number (1 is one) by domain score"
    )
    source: Literal["real_biased", "synthetic_biased", "synthetic_fair"] | None = Field(
        None, description="fisher and magnitude: whose gradients; null: synthetic_fair"
    )
    head: str | None = Field(
        None, description="head_only and dfr: name of the last layer; null: what the logits come from"
    )
    blocks: list[str] | None = Field(None, min_length=1, description="rule blocks: names of the modules that are tuned")
    freeze: list[str] = Field([], description="names of modules of which nothing is selected, whatever the rule says")
    lr: float | None = Field(None, gt=0, description="instead of finetune.lr, or of train.lr where a model is trained")
    epochs: int | None = Field(None, ge=1, description="instead of finetune.epochs, or of train.epochs")
    weight_decay: float | None = Field(None, ge=0, description="instead of finetune's, or of train's")
    batchnorm: Literal["freeze", "adapt"] | None = Field(None, description="instead of finetune.batchnorm")
    step_size: float = Field(0.01, gt=0, description="group_dro: of the weights of the groups (eta)")
    adjustment: float = Field(0.0, ge=0, description="group_dro: C of the adjustment C / sqrt(images of the group)")
    first_epochs: int = Field(
        1, ge=1, description="jtt: epochs after which the training is stopped whose errors are weighted up"
    )
    upweight: int = Field(20, ge=1, description="jtt: how often an image that it got wrong comes in an epoch")
    balanced_from: Literal["real", "synthetic"] = Field(
        "real", description="dfr: balanced images for the last layer: of the validation set by group, or synthetic"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, kinds in _OF_KINDS.items():
            # The settings of a run are written with all their defaults.
            if self.kind not in kinds and getattr(self, name) != type(self).model_fields[name].default:
                raise Problem(
                    (name,), f"kind {self.kind!r} has no use for it, only {' and '.join(kinds)}; leave it out"
                )
        if self.kind != "tune":
            return self
        given = {
            name for name in ("density", "k", "bias", "domain", "head", "blocks") if getattr(self, name) is not None
        }
        if given not in SIZES[self.rule]:
            ways = " or ".join(" and ".join(sorted(way)) or "no size" for way in SIZES[self.rule])
            raise Problem((), f"rule {self.rule!r} takes {ways}, found {' and '.join(sorted(given)) or 'none'}")
        if self.density_of == "weights" and self.density is None:
            raise Problem(("density_of",), "found 'weights' without a density; give one, or leave it out")
        for name in ("bias", "domain"):
            share = getattr(self, name)
            if isinstance(share, float) and share > 1:
                raise Problem((name,), f"found {share}, expected a share up to 1.0, or a whole number")
        one_source = self.criterion in ("fisher", "magnitude")
        if "cosine" in (self.criterion, self.domain_criterion) and self.granularity == "element":
            raise Problem(("granularity",), "found 'element', expected row or tensor for the criterion 'cosine'")
        if self.source is not None and not one_source:
            raise Problem(("source",), f"criterion {self.criterion!r} compares two sources and takes none")
        if self.domain_criterion in ("fisher", "magnitude"):
            raise Problem(("domain_criterion",), f"found {self.domain_criterion!r}, expected one that compares sources")
        return self
