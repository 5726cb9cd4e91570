"""Balanced resampling, the field's RWG ("reweighting groups", Idrissi et al., CLeaR 2022, arXiv 2110.14503)."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from aimfair.methods.base import MethodSettings

if TYPE_CHECKING:
    from aimfair.methods.work import Trained, Work


class BalancedResampling(MethodSettings):
    """Training on the biased real images with every group sampled equally often, without replacement."""

    kind: Literal["balanced_resampling"] = Field(
        "balanced_resampling", description="a new model on real images, every group equally often (RWG)"
    )

    @property
    def reads_groups(self) -> bool:
        return True

    def run(self, work: "Work") -> "Trained":
        from aimfair.training.samplers import EqualGroups

        train = work.splits().train
        return work.fit(work.training(work.initial(), train, sampler=EqualGroups(work.groups(train)[0])))

    def summary(self, density: float | None = None, images: int = 0) -> str:
        return "trains a new model from the initial weights on real images, sampling every group equally often"
