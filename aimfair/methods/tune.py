"""Selective tuning (AIM-Fair, CVPR 2025, arXiv 2503.05665): the selected weights of the biased model are tuned on
balanced synthetic images, and all others keep their bits."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from aimfair.base.errors import AimfairError
from aimfair.base.seeds import derive_seed, generator
from aimfair.base.settings import Problem
from aimfair.methods.base import OF_TRAINING, FinetuneMethod, synthetic_images
from aimfair.selective.choices import SIZES, Criterion, Granularity, Rule

if TYPE_CHECKING:
    from aimfair.data.images import ImageSet
    from aimfair.methods.work import Trained, Work
    from aimfair.selective.mask import ParameterMask
    from aimfair.selective.sensitivity import Sensitivity

FAIR = "synthetic_fair"
"""The source of criteria that use one, unless a method names another."""

_SOURCES = {
    "real_biased": "real biased",
    "synthetic_biased": "synthetic biased",
    "synthetic_fair": "synthetic balanced",
}

_WITHOUT_GRADIENTS: Mapping[str, str] = {
    "all": "all weights are tuned.",
    "random": "weights drawn at random are tuned.",
    "head_only": "only the head is tuned.",
    "blocks": "only the modules under `blocks` are tuned.",
}

OF_TUNING = (*OF_TRAINING, "real_share")
"""Settings of the training, on which the mask does not depend."""

_SIZES = ("density", "k", "bias_density", "domain_density", "bias_k", "domain_k", "head", "blocks")


class Tune(FinetuneMethod):
    """Selective tuning; settings of the selection are named as in ``aimfair.Sensitivity.select``.

    Linear probing, full fine-tuning and single blocks are masks, too.
    """

    kind: Literal["tune"] = Field(
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
    bias_density: float | None = Field(None, gt=0, le=1, description="intersection: top share by bias score")
    domain_density: float | None = Field(None, gt=0, le=1, description="intersection: bottom share by domain score")
    bias_k: int | None = Field(None, ge=1, description="intersection: top number by bias score")
    domain_k: int | None = Field(None, ge=1, description="intersection: bottom number by domain score")
    source: Literal["real_biased", "synthetic_biased", "synthetic_fair"] | None = Field(
        None, description="fisher and magnitude: whose gradients; null: synthetic_fair"
    )
    head: str | None = Field(
        None, description="head_only, last_layer_retrain: name of the last layer; null: what computes the logits"
    )
    blocks: list[str] | None = Field(None, min_length=1, description="rule blocks: names of the modules that are tuned")
    freeze: list[str] = Field([], description="names of modules in which nothing is selected, whatever the rule says")
    real_share: float | None = Field(
        None,
        gt=0,
        description="biased real images among the balanced synthetic ones that tune, as a share of the number of these;"
        " null: none",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = {name for name in _SIZES if getattr(self, name) is not None}
        if given not in SIZES[self.rule]:
            ways = " or ".join(" and ".join(sorted(way)) or "no size" for way in SIZES[self.rule])
            raise Problem((), f"rule {self.rule!r} takes {ways}, found {' and '.join(sorted(given)) or 'none'}")
        if self.density_of == "weights" and self.density is None:
            raise Problem(("density_of",), "found 'weights' without a density; give one, or leave it out")
        if "cosine" in (self.criterion, self.domain_criterion) and self.granularity == "element":
            raise Problem(("granularity",), "found 'element', expected row or tensor for the criterion 'cosine'")
        if self.source is not None and self.criterion not in ("fisher", "magnitude"):
            raise Problem(("source",), f"criterion {self.criterion!r} compares two sources and takes none")
        if self.domain_criterion in ("fisher", "magnitude"):
            raise Problem(("domain_criterion",), f"found {self.domain_criterion!r}, expected one that compares sources")
        return self

    @property
    def uses_synthetic(self) -> bool:
        return True

    @property
    def trains_on_real(self) -> bool:
        return self.real_share is not None

    @property
    def own(self) -> dict[str, Any]:
        real = {} if self.real_share is None else {"real_share": self.real_share}
        return {"kind": self.kind, **real}  # the mask holds the rest

    @property
    def selection(self) -> dict[str, Any]:
        """What the mask depends on."""
        return self.model_dump(exclude={"kind", *OF_TUNING})

    def upstream(self, seed: int, name: str) -> list[str]:
        return [*super().upstream(seed, name), f"select/{seed}/{name}"]

    @property
    def uses_gradients(self) -> bool:
        """Whether gradients decide the mask."""
        return self.rule not in _WITHOUT_GRADIENTS

    def run(self, work: "Work") -> "Trained":
        from aimfair.data.images import union

        model, images = work.biased(), work.balanced()
        if self.real_share is not None:
            images = union(images, self._real(work, round(self.real_share * len(images))))
        return work.fit(work.training(model, images, mask=work.mask(model)))

    def _real(self, work: "Work", wanted: int) -> "ImageSet":
        """So many of the biased real training images, or all of them, at least one; drawn without their labels."""
        real = work.splits().train
        if wanted > len(real):
            work.log.warn(f"{work.name}: real_share asks for {wanted} real images, there are {len(real)}: all are used")
        chosen = generator(work.seed, "real images").permutation(len(real))[: max(wanted, 1)]
        return real.rows(chosen)

    def summary(self, density: float | None = None, images: int = 0) -> str:
        part = "a part" if density is None else f"{density:.1%}"
        real = "" if self.real_share is None else f" and {self.real_share:.0%} as many biased real ones"
        return f"tunes {part} of the biased model's weights on {synthetic_images(images)}{real}"

    def model_card(self, settings: str, density: float | None = None, images: int = 0) -> str:
        share = "" if density is None else f" They are {density:.1%} of all."
        return (
            f"Rule `{self.rule}` ({settings}): {self._selected_by()} The others keep their bits.{share} What is"
            f" tuned is tuned on balanced synthetic images {self._beside()}, from the biased model on."
            f" {self.group_labels} {self._origin()}"
        )

    def _beside(self) -> str:
        if self.real_share is None:
            return "alone"
        return f"and {self.real_share:.0%} as many real ones of the biased training set, with their target labels"

    def _selected_by(self) -> str:
        """What decides which weights are tuned."""
        frozen = " Nothing is tuned in the modules under `freeze`." if self.freeze else ""
        if (fixed := _WITHOUT_GRADIENTS.get(self.rule)) is not None:
            return f"{fixed} No gradient decides it.{frozen}"
        compared = {"synthetic_biased", FAIR}
        if self.criterion in ("fisher", "magnitude"):
            compared = {self.source or FAIR}
        if self.rule != "top_k":  # which has no domain score
            compared |= {"real_biased", "synthetic_biased"}
        *most, last = (name for source, name in _SOURCES.items() if source in compared)
        sources = f"{', '.join(most)} and {last}" if most else last
        return f"the biased model's gradients on {sources} images decide which weights are tuned.{frozen}"

    def _origin(self) -> str:
        """Whose the rule is."""
        paper = "CVPR 2025, arXiv 2503.05665"
        if not self.uses_gradients:
            return f"It is a control for AIM-Fair's selection ({paper}), with its images and its tuning."
        criteria = {self.criterion, self.domain_criterion or "difference"}
        if (self.rule, self.granularity, criteria) == ("intersection", "tensor", {"difference"}):
            return f"This is AIM-Fair's own rule ({paper})."
        return f"The method is AIM-Fair's ({paper}), the rule one of aimfair's."


class NothingSelectedError(AimfairError):
    """A selection without weights."""


def select_mask(
    sensitivity: "Sensitivity",
    name: str,
    method: Tune,
    seed: int,
    *,
    head: Callable[[], Sequence[str]] | None = None,
) -> "ParameterMask":
    """The mask of one method.

    Args:
        name: of the method, for errors.
        seed: of the rule ``random``.
        head: finds the parameters of the model's last layer, called for the rule ``head_only`` if the method names
            none; None: they are those of the module that was registered last.

    Raises:
        NothingSelectedError: the settings select nothing.
        AimfairError: they do not go together.
    """
    from aimfair.selective.selection import NothingInCommonError

    arguments = {key: value for key, value in method.selection.items() if value is not None}
    del arguments["density_of"]
    arguments["seed"] = derive_seed(seed, "random mask")
    if method.criterion in ("fisher", "magnitude"):
        arguments.setdefault("source", FAIR)
    counts_units = method.granularity != "element" and method.rule in ("top_k", "ratio", "random")
    if method.rule == "head_only" and method.head is None and head is not None:
        arguments["head"] = head()
    try:
        if method.density_of == "weights" and counts_units:
            arguments["k"] = _fewest_units(sensitivity, arguments, arguments.pop("density"))
        mask = sensitivity.select(**arguments)
    except NothingInCommonError as error:
        raise NothingSelectedError(f"methods.{name}: {error}") from error
    except (ValueError, FloatingPointError) as error:
        raise AimfairError(f"methods.{name}: {error}") from error
    if mask.nnz == 0:
        raise NothingSelectedError(
            f"methods.{name}: the rule {method.rule} selects nothing; raise its density or shares"
        )
    return mask


def _fewest_units(sensitivity: "Sensitivity", arguments: dict[str, Any], density: float) -> int:
    """The smallest k whose selection holds ``round(density * weights)`` weights, before ``freeze`` removes any.

    Selections of top_k, ratio and random grow with k, one unit at a time, so bisection finds it.
    """
    from aimfair.selective.units import number_of_units, unit_counts

    arguments = {**arguments, "freeze": []}
    first = sensitivity.select(**arguments, k=1)
    target = number_of_units(density, None, first.numel)
    low, high = 1, sum(unit_counts(first.shapes, arguments["granularity"]))
    while low < high:
        middle = (low + high) // 2
        if sensitivity.select(**arguments, k=middle).nnz >= target:
            high = middle
        else:
            low = middle + 1
    return high
