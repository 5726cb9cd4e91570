"""Group distributionally robust optimization (Sagawa et al., ICLR 2020, arXiv 1911.08731)."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from aimfair.methods.base import MethodSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from aimfair.methods.work import Trained, Work
    from aimfair.training.samplers import Indices


class GroupDro(MethodSettings):
    """Training on the biased real images with group losses weighted online; batches sample every group equally often,
    as in Algorithm 1.

    Which epoch is kept follows ``train.keep``; the publication reads group labels of validation images for that, too.
    """

    kind: Literal["group_dro"] = Field("group_dro", description="a new model, groups weighted by their losses")
    step_size: float = Field(0.01, gt=0, description="group_dro: of the weights of the groups (eta)")
    adjustment: float = Field(0.0, ge=0, description="group_dro: C of the adjustment C / sqrt(images of the group)")

    @property
    def reads_groups(self) -> bool:
        return True

    def run(self, work: "Work") -> "Trained":
        from aimfair.training.samplers import EqualGroups

        train, model = work.splits().train, work.initial()
        groups, names = work.groups(train)
        objective = GroupWeights(groups, self.step_size, self.adjustment, next(model.parameters()).device)
        model, history = work.fit(work.training(model, train, sampler=EqualGroups(groups), objective=objective))
        history.notes |= {f"last weight of {name}": weight for name, weight in zip(names, objective.q, strict=True)}
        return model, history

    def summary(self, density: float | None = None, images: int = 0) -> str:
        return (
            "trains a new model from the initial weights on real images, weighting up the groups with the largest loss"
        )


class GroupWeights:
    """The weighted sum of group losses, with weights that grow where the loss is high (their Algorithm 1).

    At every step ``q_g <- q_g * exp(step_size * (loss_g + adjustment / sqrt(n_g)))``, normalised, and the objective is
    the sum of ``q_g * loss_g``; loss_g is the mean over the images of group g in the batch. A group without images in
    the batch keeps its weight, before normalisation. The adjustment is that of their section 3.3.

    Args:
        groups: int64 [N] of the training images, numbered from 0 without gaps.
    """

    def __init__(self, groups: "Indices", step_size: float, adjustment: float, device: "torch.device"):
        import torch

        sizes = torch.from_numpy(groups).bincount()
        self._depends_on = (groups.tolist(), step_size, adjustment)
        self._groups = torch.from_numpy(groups).to(device)
        self._numbers = torch.arange(len(sizes), device=device)
        self._step_size = step_size
        self._adjustment = (adjustment / sizes.double().sqrt()).to(device)
        # Logarithms: no weight vanishes for good.
        self._log_q = torch.full((len(sizes),), 1 / len(sizes), dtype=torch.float64, device=device).log()
        self._next = self._log_q

    @property
    def depends_on(self) -> object:
        return self._depends_on

    @property
    def q(self) -> list[float]:
        """The weights of the groups; they sum to 1."""
        return self._log_q.exp().tolist()

    def weights(self, losses: "Tensor", indices: "Indices") -> "Tensor":
        import torch

        member = self._groups[torch.from_numpy(indices).to(losses.device)] == self._numbers[:, None]
        images = member.sum(1).clamp(min=1)
        # A sum of zeros and losses: NaN of one image is NaN in its own group alone.
        group_losses = torch.where(member, losses.double(), 0.0).sum(1) / images
        gain = torch.where(member.any(1), group_losses + self._adjustment, 0.0)
        log_q = self._log_q + self._step_size * gain
        self._next = log_q - log_q.logsumexp(0)
        share = self._next.exp() / images
        return torch.where(member, share[:, None], 0.0).sum(0).float()

    def accept(self) -> None:
        self._log_q = self._next

    def state(self) -> list[float]:
        return self._log_q.tolist()

    def restore(self, state: list[float]) -> None:
        self._log_q = self._log_q.new_tensor(state)
