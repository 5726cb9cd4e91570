"""Controls: the training of the biased model again, on the same images, on synthetic ones, or on both."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from aimfair.methods.base import MethodSettings, synthetic_images

if TYPE_CHECKING:
    from aimfair.methods.work import Trained, Work


class Erm(MethodSettings):
    """Empirical risk minimisation: the biased training again, with the method's own lr, epochs and weight decay."""

    kind: Literal["erm"] = Field("erm", description="empirical risk minimisation on the biased real images")

    def run(self, work: "Work") -> "Trained":
        return work.fit(work.training(work.initial(), work.splits().train))

    def summary(self, density: float | None = None, images: int = 0) -> str:
        return "trains a new model from the initial weights on the same real images, without any correction"


class SyntheticOnly(MethodSettings):
    """Training on the balanced synthetic images alone."""

    kind: Literal["synthetic_only"] = Field("synthetic_only", description="a new model on the synthetic images alone")

    @property
    def uses_synthetic(self) -> bool:
        return True

    @property
    def trains_on_real(self) -> bool:
        return False

    def run(self, work: "Work") -> "Trained":
        return work.fit(work.training(work.initial(), work.balanced()))

    def summary(self, density: float | None = None, images: int = 0) -> str:
        return f"trains a new model from the initial weights on {synthetic_images(images)} alone"


class RealAndSynthetic(MethodSettings):
    """Training on the biased real and the balanced synthetic images together."""

    kind: Literal["real_and_synthetic"] = Field("real_and_synthetic", description="a new model on both sets together")

    @property
    def uses_synthetic(self) -> bool:
        return True

    def run(self, work: "Work") -> "Trained":
        from aimfair.data.images import union

        return work.fit(work.training(work.initial(), union(work.splits().train, work.balanced())))

    def summary(self, density: float | None = None, images: int = 0) -> str:
        return f"trains a new model from the initial weights on real images and {synthetic_images(images)} together"
