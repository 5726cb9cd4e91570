"""The ways to tune that the study compares, each with the settings that trials search."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from scipy.stats import qmc  # type: ignore[import-untyped]
from torch import Tensor, nn

from aimfair.ablation.blocks import blocks_of
from aimfair.base.seeds import derive_seed
from aimfair.data.images import ImageSet, union
from aimfair.methods import Tune
from aimfair.methods.tune import select_mask
from aimfair.selective.mask import ParameterMask
from aimfair.selective.sensitivity import Sensitivity
from aimfair.training.loop import Training
from aimfair.training.models import build_model
from aimfair.training.sensitivity import SOURCES, measure_sensitivity
from aimfair.training.settings import FinetuneSettings, ModelSettings, SensitivitySettings
from tools.premise_study.domains import Images, Regime, base, model_settings

Values = Mapping[str, Any]
State = dict[str, Tensor]

RATES, EPOCHS, DENSITIES, SHARES = (1e-4, 0.1), (4, 12), (0.01, 1.0), (0.05, 1.0)
"""Ends of logarithmic scales: of learning rates, epochs, selected shares of the weights, and numbers of real images as
shares of that of synthetic ones."""

STATISTICS = ("running_mean", "running_var")

PHASES = 3
"""Selections of a dynamic mask, after equal shares of the epochs."""


@dataclass
class Workshop:
    """The biased model of one replicate, and what tunes it. ``final``: with all synthetic images, else without those
    that judge trials."""

    regime: Regime
    replicate: int
    images: Images
    final: bool
    _tuned: dict[tuple[float, int, str], list[State]] = field(default_factory=dict)

    @property
    def synthetic(self) -> ImageSet:
        return self.images.balanced if self.final else self.images.part

    @property
    def settings(self) -> ModelSettings:
        return model_settings(self.regime)

    @cached_property
    def _initial(self) -> nn.Module:
        return build_model(self.settings, 2, self.replicate)

    @cached_property
    def biased(self) -> State:
        model, train = copy.deepcopy(self._initial), base().train
        Training(model, self.images.train, self.images.validation, train, self.settings, self.replicate).fit()
        return state_of(model)

    def model(self, state: State | None = None) -> nn.Module:
        """With the given weights, by default those of the biased model."""
        model = copy.deepcopy(self._initial)
        model.load_state_dict(self.biased if state is None else state)
        return model

    @cached_property
    def sensitivity(self) -> Sensitivity:
        """Of the biased model, from gradients of batches."""
        return self.measure(self.model())

    @cached_property
    def per_image(self) -> Sensitivity:
        """The same from gradients of single images, 128 of each source at most."""
        return self.measure(self.model(), SensitivitySettings(batch_size=1, batches=128))

    def measure(self, model: nn.Module, settings: SensitivitySettings | None = None) -> Sensitivity:
        sources = dict(zip(SOURCES, (self.images.train, self.images.biased, self.synthetic), strict=True))
        smallest = min(map(len, sources.values()))
        settings = settings or SensitivitySettings(batch_size=min(64, max(smallest // 4, 1)))
        return measure_sensitivity(model, sources, settings, self.settings, seed=self.replicate)

    def train(
        self,
        values: Values,
        images: ImageSet | None = None,
        mask: ParameterMask | None = None,
        model: nn.Module | None = None,
        **more: Any,
    ) -> nn.Module:
        """The biased model, or ``model``, tuned on ``images``, by default the synthetic ones."""
        changes = {key: values[key] for key in ("lr", "epochs", "batchnorm") if key in values}
        settings: FinetuneSettings = base().finetune.model_copy(update=changes)
        model = model or self.model()
        images = self.synthetic if images is None else images
        training = Training(
            model, images, self.images.validation, settings, self.settings, self.replicate, mask=mask, **more
        )
        training.fit()
        return model

    def tuned(self, values: Values, on: str = "synthetic") -> list[State]:
        """All weights tuned: the states after each epoch. Kept, as several methods begin with them."""
        key = (values["lr"], values["epochs"], on)
        if key not in self._tuned:
            states: list[State] = []
            images = self.images.biased if on == "biased" else self.synthetic
            self.train(values, images, monitor=lambda model, _: states.append(state_of(model)))
            self._tuned[key] = states
        return self._tuned[key]

    def forget(self) -> None:
        self._tuned.clear()


def state_of(model: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def blend(start: State, *parts: tuple[float, State, State]) -> State:
    """``start`` plus, for each part (factor, to, origin), that many times ``to - origin``.

    Statistics of BatchNorm are moved by no more than once the difference, as variances must stay positive; counters
    are those of ``start``.
    """
    out = {}
    for name, tensor in start.items():
        out[name] = tensor.clone()
        if tensor.is_floating_point():
            for factor, to, origin in parts:
                out[name] += (min(factor, 1.0) if name.endswith(STATISTICS) else factor) * (to[name] - origin[name])
    return out


# -- selection ---------------------------------------------------------------------------------------------------------


def by_rule(shop: Workshop, values: Values, **rule: Any) -> State:
    """A rule of aimfair."""
    density = {"density": values["density"]} if "density" in values else {}
    method = Tune(**rule, **density)
    probe = shop.sensitivity if method.uses_gradients else Sensitivity(shop.model(), SOURCES)
    return state_of(shop.train(values, mask=select_mask(probe, "study", method, shop.replicate)))


def ours(density: float) -> Tune:
    """The rule of this project."""
    return Tune(**_OURS, density=density)


def one_block(shop: Workshop, values: Values) -> State:
    names = [name for name, _ in shop.model().named_parameters()]
    blocks = list(blocks_of(names, least=4).values())
    chosen = blocks[min(int(values["block"] * len(blocks)), len(blocks) - 1)]
    return by_rule(shop, values, rule="blocks", blocks=chosen)


def by_scores(
    shop: Workshop, values: Values, score: Callable[[Workshop], dict[str, Tensor]], *, within_tensors: bool = False
) -> State:
    """The weights with the highest of scores of our own; ``within_tensors``: the same share of every tensor."""
    scores = score(shop)
    if within_tensors:
        selected = {name: _top(one, values["density"]) for name, one in scores.items()}
    else:
        flat = _top(torch.cat([one.flatten() for one in scores.values()]), values["density"])
        parts = torch.split(flat, [one.numel() for one in scores.values()])
        selected = {name: part.view(one.shape) for part, (name, one) in zip(parts, scores.items(), strict=True)}
    model = shop.model()
    mask = ParameterMask.from_bool(selected, dict(model.named_parameters()))
    return state_of(shop.train(values, mask=mask, model=model))


def _top(scores: Tensor, density: float) -> Tensor:
    """bool, as ``scores``: the round(density * N) largest, at least one; ties to the lowest index."""
    count = max(round(density * scores.numel()), 1)
    order = torch.argsort(scores.flatten(), descending=True, stable=True)
    selected = torch.zeros(scores.numel(), dtype=torch.bool)
    selected[order[:count]] = True
    return selected.view(scores.shape)


def ratio_scores(shop: Workshop) -> dict[str, Tensor]:
    """Relative difference of the bias over that of the domain, as the rule ``ratio``."""
    bias, domain = (_scores(shop.sensitivity, "relative_difference", contrast) for contrast in ("bias", "domain"))
    return {name: bias[name] / (domain[name] + 1e-12) for name in bias}


def weighted_scores(shop: Workshop) -> dict[str, Tensor]:
    """The difference of the bias times the weight: the first-order change of the loss when the weight goes to zero."""
    weights = dict(shop.model().named_parameters())
    return {name: one * weights[name].detach().abs() for name, one in _scores(shop.sensitivity, "difference").items()}


def t_scores(shop: Workshop) -> dict[str, Tensor]:
    """From gradients of single images: Welch's t of the bias, over 1 + that of the domain."""
    probe = shop.per_image
    means, squares = ([of(source) for source in SOURCES] for of in (probe.mean, probe.mean_square))

    def t(name: str, one: int, other: int) -> Tensor:
        variances = sum((squares[i][name] - means[i][name] ** 2).clamp_min(0) for i in (one, other))
        error = (torch.as_tensor(variances) / probe.batches[SOURCES[0]]).sqrt()
        return (means[one][name] - means[other][name]).abs() / (error + 1e-12)

    return {name: t(name, 1, 2) / (1 + t(name, 0, 1)) for name in means[0]}


def _scores(probe: Sensitivity, criterion: Any, contrast: str = "bias") -> dict[str, Tensor]:
    shapes = {name: one.shape for name, one in probe.mean(SOURCES[0]).items()}
    scores = probe.unit_scores(criterion, contrast=contrast, granularity="element")
    return {name: one.view(shapes[name]) for name, one in scores.items()}


def dynamic(shop: Workshop, values: Values) -> State:
    """The rule of aimfair, its mask selected anew with the gradients of the model so far."""
    model = shop.model()
    epochs = np.diff(np.round(np.linspace(0, values["epochs"], PHASES + 1)).astype(int)).tolist()
    for number in epochs:
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        mask = select_mask(shop.measure(model), "study", ours(values["density"]), shop.replicate)
        shop.train({**values, "epochs": number}, mask=mask, model=model)
    return state_of(model)


# -- other images, and arithmetic of weights ---------------------------------------------------------------------------


def mixed(shop: Workshop, values: Values, *, masked: bool = False) -> State:
    """Real biased images among the synthetic ones; ``masked``: only the weights that aimfair's rule selects.

    Distillation with the classes that the biased model gives real training images is the same: it has learned them all.
    """
    real = shop.images.train
    count = min(max(round(values["share"] * len(shop.synthetic)), 1), len(real))
    chosen = real.subset(np.random.default_rng(derive_seed(shop.replicate, "mixed")).permutation(len(real))[:count])
    images = union(shop.synthetic, chosen)
    images = replace(images, images=images.images[:])  # once, not in every batch
    model = shop.model()
    mask = None
    if masked:
        mask = select_mask(shop.sensitivity, "study", ours(values["density"]), shop.replicate)
    return state_of(shop.train(values, images, mask, model))


def interpolated(shop: Workshop, values: Values) -> State:
    """``factor`` times the way from the biased to the tuned weights: 1 is full tuning, more extrapolates."""
    return blend(shop.biased, (values["factor"], shop.tuned(values)[-1], shop.biased))


def averaged(shop: Workshop, values: Values) -> State:
    """The mean of the weights after the last epochs, ``last`` of all."""
    states = shop.tuned(values)
    states = states[-max(round(values["last"] * len(states)), 1) :]
    return blend(states[0], *((1 / len(states), one, states[0]) for one in states))


def debiased(shop: Workshop, values: Values) -> State:
    """Full tuning plus ``factor`` times the difference to the same tuning on biased synthetic images."""
    fair, biased = shop.tuned(values)[-1], shop.tuned(values, "biased")[-1]
    moved = blend(fair, (values["factor"], fair, biased))
    return moved | {name: one for name, one in fair.items() if name.endswith(STATISTICS)}


# -- the list ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """
    Attributes:
        run: the tuned weights.
        searched: setting -> its scale from [0, 1], besides learning rate and epochs.
        given: values of the first trial, besides the learning rate and the epochs of full tuning.
        free: setting -> all of its values are tried in each trial, as that needs no training.
    """

    run: Callable[[Workshop, Values], State]
    searched: Mapping[str, Callable[[float], float]] = field(default_factory=dict)
    given: Mapping[str, float] = field(default_factory=dict)
    free: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def trials(self, count: int) -> list[dict[str, Any]]:
        """The values that are tried: those given, then a Sobol sequence. Learning rates and epochs are the same for
        all methods."""
        scales: dict[str, Callable[[float], float]] = {
            "lr": partial(_log, RATES),
            "epochs": lambda u: round(_log(EPOCHS, u)),
            **self.searched,
        }
        points = qmc.Sobol(4, seed=0).random(2 ** math.ceil(math.log2(max(count, 2))))
        tried = [{"lr": 0.003, "epochs": base().finetune.epochs, **self.given}]
        for point in points[: count - 1]:
            tried.append({name: scale(float(u)) for u, (name, scale) in zip(point, scales.items(), strict=False)})
        for name, options in self.free.items():
            tried = [{**one, name: option} for one in tried for option in options]
        return tried


def _log(ends: tuple[float, float], u: float) -> float:
    return float(f"{ends[0] * (ends[1] / ends[0]) ** u:.4g}")


_DENSITY: dict[str, Any] = {"searched": {"density": partial(_log, DENSITIES)}, "given": {"density": 0.3}}
_SHARE: dict[str, Any] = {"searched": {"share": partial(_log, SHARES)}, "given": {"share": 0.3}}
_OURS: dict[str, Any] = {"rule": "ratio", "criterion": "relative_difference"}
_PAPER: dict[str, Any] = {
    "rule": "intersection",
    "granularity": "tensor",
    "bias_density": 0.887,
    "domain_density": 0.887,
}

METHODS: dict[str, Method] = {
    "full": Method(lambda shop, values: shop.tuned(values)[-1]),
    "random": Method(partial(by_rule, rule="random"), **_DENSITY),
    "linear_probe": Method(partial(by_rule, rule="head_only")),
    "one_block": Method(one_block, {"block": lambda u: u}, {"block": 0.99}),
    "paper": Method(partial(by_rule, **_PAPER)),
    "aimfair": Method(partial(by_rule, **_OURS), **_DENSITY),
    "within_tensors": Method(partial(by_scores, score=ratio_scores, within_tensors=True), **_DENSITY),
    "per_image": Method(partial(by_scores, score=t_scores), **_DENSITY),
    "weighted": Method(partial(by_scores, score=weighted_scores), **_DENSITY),
    "dynamic": Method(dynamic, **_DENSITY),
    "mixed": Method(mixed, **_SHARE),
    "mixed_masked": Method(
        partial(mixed, masked=True),
        {**_SHARE["searched"], **_DENSITY["searched"]},
        {**_SHARE["given"], **_DENSITY["given"]},
    ),
    "interpolated": Method(interpolated, free={"factor": (0.25, 0.5, 0.75, 1.25, 1.5)}),
    "averaged": Method(averaged, free={"last": (0.25, 0.5, 0.75)}),
    "debiased": Method(debiased, free={"factor": (0.25, 0.5, 1.0)}),
}
