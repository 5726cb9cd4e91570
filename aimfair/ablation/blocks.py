"""What each block contributes: the method with one block of the model frozen at a time."""

from dataclasses import dataclass

import numpy as np

from aimfair.ablation import charts, model_blocks, sweep, variants
from aimfair.ablation.findings import Figure, Findings
from aimfair.ablation.options import Options, changed, tuned
from aimfair.ablation.outcomes import Outcomes
from aimfair.ablation.plan import ONLY_GROUP, Arm, Names, Parent, Plan, variant
from aimfair.base.errors import AimfairError
from aimfair.config import Config
from aimfair.methods.tune import Tune, select_mask
from aimfair.run.directory import Run
from aimfair.selective.mask import ParameterMask
from aimfair.stages.select import sensitivity_of


@dataclass(frozen=True)
class Request:
    method: str


def read(options: Options, config: Config) -> Request:
    """``--method``."""
    options.only("blocks", "method")
    return Request(options.method_of(config))


def plan(parent: Parent, request: Request) -> Plan:
    config, names = parent.config, Names(parent.config)
    method = tuned(config, request.method)
    masks = _selected(variants.with_gradients(parent), request.method, method)
    blocks = model_blocks.blocks(masks[0].names)
    whole = names.add(request.method, method)
    arms, empty = [], []
    for block, modules in blocks.items():
        share = share_of(masks, model_blocks.members(modules, masks[0].names))
        if share == 0:
            empty.append(block)
        elif share == 1:
            empty.append(f"{block} (everything is in it)")
        else:
            frozen = changed(method, freeze=[*method.freeze, *modules])
            label = f"without {block}"
            arms.append(
                Arm(
                    label,
                    names.add(f"without_{block}", frozen),
                    facts={"frozen share of the selected": round(share, 6)},
                )
            )
    if not arms:
        raise AimfairError(f"ablate blocks: {request.method} selects in one block alone; name another --method")
    arms.append(Arm(request.method, whole, facts={"frozen share of the selected": 0.0}))
    notes = ["A mask without a block is smaller: nothing is selected elsewhere instead."]
    if empty:
        notes.append(f"Left out, as freezing them changes nothing or everything: {', '.join(empty)}.")
    return Plan(
        title=f"Blocks of {request.method}, one frozen at a time",
        question="The mask of the method without the weights of one block; what gets worse needed them.",
        groups={ONLY_GROUP: variant(config, names.methods, whole)},
        arms=arms,
        reference=request.method,
        notes=notes,
    )


def findings(parent: Parent, request: Request, outcomes: Outcomes) -> Findings:
    figures = []
    arms = [one for one in outcomes.arms if one.versus is not None]
    for metric in sweep.METRICS[:2]:
        points = [
            charts.Point(float(i + 1), one.versus[metric].mean, "", "after", *one.versus[metric].over_images)
            for i, one in enumerate(arms)
            if one.versus is not None
        ]
        figures.append(
            Figure(
                f"Change of {charts.axis_name(metric)} without each block",
                "In points beside the method itself, blocks in the order of the table; bars are intervals over the test"
                " images.",
                charts.scatter(
                    points, x_name="block", y_name="change in points", zero=True, x_format=lambda value: f"{value:.0f}",
                    y_format=lambda value: charts.number(100 * value),
                ),
            )
        )  # fmt: skip
    return Findings(figures, sweep.beside_reference(outcomes, sweep.METRICS[:2]))


def _selected(run: Run, name: str, method: Tune) -> list[ParameterMask]:
    """The mask of a method for each seed, selected here: which blocks it needs is to be known before its run is."""
    masks = []
    for seed in run.config.seeds:
        run.interrupt.check()
        masks.append(select_mask(sensitivity_of(run, seed), name, method, seed))
    return masks


def share_of(masks: list[ParameterMask], names: list[str]) -> float:
    """Of the selected weights, the share that lies in these parameters, mean over the masks."""
    return float(
        np.mean([sum(mask.nnz_per_tensor[mask.index[name]] for name in names) / max(mask.nnz, 1) for mask in masks])
    )
