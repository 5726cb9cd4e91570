"""The results of every arm, read from the runs they are in."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aimfair.ablation.plan import Arm, Plan
from aimfair.base.errors import AimfairError
from aimfair.base.seeds import generator
from aimfair.config import Config
from aimfair.evaluation.over_seeds import Grouping
from aimfair.evaluation.predictions import Predictions
from aimfair.evaluation.results import Difference, MethodResult, Results
from aimfair.methods import BIASED
from aimfair.report.wording import Verdict, judge
from aimfair.training.history import HISTORY, History


@dataclass(frozen=True)
class Outcome:
    """One arm.

    Attributes:
        result: over its seeds.
        validation_accuracy, validation_loss: of the kept epoch, mean over the seeds; independent of group labels.
        seconds: of one fine-tuning, mean over the seeds.
        versus: metric -> this arm minus the reference; None for the reference itself.
        versus_biased: metric -> this arm minus the biased model.
    """

    arm: Arm
    result: MethodResult
    validation_accuracy: float
    validation_loss: float
    seconds: float
    versus: Mapping[str, Difference] | None
    versus_biased: Mapping[str, Difference]

    @property
    def mean(self) -> dict[str, float]:
        return self.result.mean


@dataclass(frozen=True)
class Outcomes:
    """
    Attributes:
        biased: the model before any method.
        results: of the first run, for what all share: names of groups, confidence, seeds.
    """

    arms: list[Outcome]
    biased: MethodResult
    results: Results

    def verdict(self, outcome: Outcome, metric: str) -> Verdict:
        """Whether the arm is better than the reference, by the rule of the report."""
        return judge(metric, (outcome.versus or outcome.versus_biased)[metric], self.results.small_group)


def collect(plan: Plan, folder: Path, clusters: Mapping[str, str]) -> Outcomes:
    """Reads the finished runs ``folder/<group>``.

    Args:
        clusters: as of :func:`difference`.

    Raises:
        AimfairError: a file is missing or damaged.
    """
    results = {group: Results.load(folder / group / "results.json") for group in plan.groups}
    reference = next((arm for arm in plan.arms if arm.label == plan.reference), None)

    def versus(arm: Arm) -> Mapping[str, Difference] | None:
        if reference is None or arm is reference:
            return None
        own = results[arm.group].methods[arm.method].versus
        if arm.group == reference.group and reference.method in own:
            return own[reference.method]
        seeds = results[arm.group].seeds
        mine, other = (Predictions.load(folder / one.group, seeds, one.method) for one in (arm, reference))
        return difference(mine, other, results[arm.group], clusters)

    arms = []
    for arm in plan.arms:
        result = results[arm.group].methods[arm.method]
        histories = _histories(folder / arm.group, plan.groups[arm.group], arm.method)
        kept = [history.epochs[history.kept_epoch - 1] for history in histories]
        arms.append(
            Outcome(
                arm,
                result,
                validation_accuracy=float(np.mean([epoch.validation_accuracy for epoch in kept])),
                validation_loss=float(np.mean([epoch.validation_loss for epoch in kept])),
                seconds=float(np.mean([sum(epoch.seconds for epoch in history.epochs) for history in histories])),
                versus=versus(arm),
                versus_biased=result.versus[BIASED],
            )
        )
    first = results[plan.arms[0].group]
    return Outcomes(arms, first.methods[BIASED], first)


def _histories(run: Path, config: Config, method: str) -> list[History]:
    found = []
    for seed in config.seeds:
        path = run / "seeds" / str(seed) / "finetuned" / method / HISTORY
        try:
            found.append(History.model_validate_json(path.read_bytes()))
        except (OSError, ValueError) as error:
            raise AimfairError(f"{path}: cannot be read; remove it and run: aimfair finetune --run {run}") from error
    return found


def difference(
    mine: Predictions, other: Predictions, results: Results, clusters: Mapping[str, str]
) -> dict[str, Difference]:
    """Metric -> ``mine`` minus ``other``, methods of two runs, paired by seed and by image.

    Args:
        results: of either run, for the names of the groups and the settings of the intervals.
        clusters: id -> cluster of the test images, see :class:`aimfair.evaluation.intervals.PairedPredictions`; images
            without one are clustered by id.

    Raises:
        AimfairError: they are not of the same images.
    """
    if mine.ids != other.ids:
        raise AimfairError("the runs of this ablation have different test images; repeat it with --overwrite")
    grouping = Grouping(
        mine.target,
        mine.protected,
        (len(results.protected_names), len(results.target_names)),
        {"mine": list(mine.predicted), "other": list(other.predicted)},
        clusters=[clusters.get(image, image) for image in mine.ids],
        confidence=results.confidence,
        replicates=results.replicates,
        generator=generator("evaluate", "bootstrap"),
    )
    return grouping.difference("mine", "other")
