"""Settings of the search for learning rates, epochs and selections."""

from typing import Literal, Self

from pydantic import Field, model_validator

from aimfair.base.settings import Problem, Settings
from aimfair.selective.choices import Criterion, Rule

Parameter = Literal["lr", "epochs", "density", "rule"]
"""What is searched for a method."""

Range = tuple[float, float]

_RULES = ("top_k", "intersection", "ratio", "budget")
"""Those that gradients decide and a density sizes."""


class TuneSettings(Settings):
    """Trials of each method's settings, judged without group labels of real images."""

    trials: int = Field(0, ge=0, le=1000, description="of each method; 0: methods keep the settings they are given")
    batch: int = Field(
        1,
        ge=1,
        description="so many trials are proposed, and pruned, without each other's results, so that they can be tried"
        " side by side",
    )
    methods: list[str] | None = Field(None, min_length=1, description="which are tuned; null: all")
    fixed: dict[str, list[Parameter]] = Field(
        {}, description="method -> what keeps its setting: lr, epochs, density, rule (with its criterion)"
    )
    seeds: int = Field(1, ge=1, description="each trial is trained with the first so many of the run's seeds")
    lr_factors: Range = Field((0.03, 30.0), description="ends of the learning rates, as multiples of the given one")
    epochs_factors: Range = Field((0.5, 2.0), description="ends of the epochs, as multiples of the given ones")
    densities: Range = Field((0.01, 1.0), description="of masks whose rule has a density")
    rules: list[Rule] = Field(
        ["ratio", "intersection", "top_k"], min_length=1, description="of methods whose mask gradients decide"
    )
    criteria: list[Criterion] = Field(
        ["difference", "relative_difference"], min_length=1, description="each is tried with each of rules"
    )
    held_out: float = Field(
        0.2, gt=0, lt=1, description="share of every group's balanced synthetic images that judges and never trains"
    )
    tolerance: float | None = Field(
        None,
        ge=0,
        le=1,
        description="loss of worst-group accuracy on them, against the best trial, that a trial may have to be"
        " chosen; null: the standard error of that of the best",
    )
    prune: bool = Field(True, description="stop trials that half of the earlier ones surpass in both objectives")
    audit: bool = Field(
        True,
        description="measure trials on labelled real images, too: for the report, which says what the choice without"
        " group labels costs; the choice does not see it",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("lr_factors", "epochs_factors", "densities"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise Problem((name,), f"found [{low:g}, {high:g}], expected two numbers above 0, the lesser first")
        if self.densities[1] > 1:
            raise Problem(("densities",), f"found {self.densities[1]:g}, expected shares up to 1")
        for rule in self.rules:
            if rule not in _RULES:
                raise Problem(("rules",), f"found {rule!r}, expected some of {', '.join(_RULES)}")
        for name in ("methods", "rules", "criteria"):
            values = getattr(self, name) or []
            if len(set(values)) < len(values):
                raise Problem((name,), f"found {values}, expected each once")
        return self
