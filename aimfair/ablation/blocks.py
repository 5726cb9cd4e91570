"""The contribution of each block: the method with one block of the model frozen at a time.

Blocks of a model are groups of modules that share no parameter, so that each can be frozen or tuned alone.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from aimfair.ablation import variants
from aimfair.ablation.options import Options, Request, changed
from aimfair.ablation.outcomes import METRICS, Figure, Findings, Outcomes, versus_reference
from aimfair.ablation.plan import ONLY_GROUP, Arm, Names, Parent, Plan, variant
from aimfair.base.errors import AimfairError
from aimfair.config import Config
from aimfair.methods.tune import Tune, select_mask
from aimfair.report import charts, wording
from aimfair.run.directory import Run
from aimfair.selective.mask import ParameterMask
from aimfair.selective.selection import names_under
from aimfair.selective.summary import block_name
from aimfair.stages.select import sensitivity_of


def read(options: Options, config: Config) -> Request:
    """``--method``."""
    options.only("blocks", "method")
    return Request(*options.method_of(config))


def plan(parent: Parent, request: Request) -> Plan:
    config, names, method = parent.config, Names(parent.config), request.tune
    masks = _selected(variants.with_gradients(parent), request.method, method)
    blocks = blocks_of(masks[0].names)
    whole = names.add(request.method, method)
    arms, empty = [], []
    for block, modules in blocks.items():
        share = share_of(masks, names_under(masks[0].names, modules))
        if share == 0:
            empty.append(block)
        elif share == 1:
            empty.append(f"{block} (it holds the whole selection)")
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
        raise AimfairError(f"ablate blocks: {request.method} selects in a single block; name another --method")
    arms.append(Arm(request.method, whole, facts={"frozen share of the selected": 0.0}))
    notes = ["A mask without a block is smaller: nothing is selected elsewhere to compensate."]
    if empty:
        notes.append(f"Left out, because freezing them changes nothing or everything: {', '.join(empty)}.")
    return Plan(
        title=f"Blocks of {request.method}, one frozen at a time",
        question="The mask of the method without the weights of one block: what gets worse depends on them.",
        groups={ONLY_GROUP: variant(config, names.methods, whole)},
        arms=arms,
        reference=request.method,
        notes=notes,
    )


def findings(parent: Parent, request: Request, outcomes: Outcomes) -> Findings:
    figures = []
    for metric in METRICS[:2]:
        differences = [(one.arm.label, one.versus[metric]) for one in outcomes.arms if one.versus is not None]
        points = [
            charts.Point(float(i), difference.mean, label, "after", *difference.over_images)
            for i, (label, difference) in enumerate(differences, 1)
        ]
        chart = charts.scatter(
            points, x_name="block", y_name="change in points", zero=True, x_format=charts.number,
            y_format=lambda value: charts.number(100 * value),
        )  # fmt: skip
        caption = "Compared with the method itself, in the order of the table; bars are intervals over the test images."
        figures.append(Figure(f"Change of {wording.lower_label(metric)} without each block", caption, chart))
    return Findings(figures, versus_reference(outcomes, METRICS[:2]))


def _selected(run: Run, name: str, method: Tune) -> list[ParameterMask]:
    """The mask of a method for each seed, selected here because the arms depend on the blocks in it."""
    masks = []
    for seed in run.config.seeds:
        run.interrupt.check()
        masks.append(select_mask(sensitivity_of(run, seed), name, method, seed))
    return masks


def share_of(masks: list[ParameterMask], names: list[str]) -> float:
    """The share of the selected weights in these parameters, mean over the masks."""
    return float(
        np.mean([sum(mask.nnz_per_tensor[mask.index[name]] for name in names) / max(mask.nnz, 1) for mask in masks])
    )


# -- blocks of a model -------------------------------------------------------------------------------------------------


def blocks_of(names: Sequence[str], least: int = 1) -> dict[str, list[str]]:
    """Block -> modules that together hold its parameters and no others, in the order of the model.

    Blocks are those of :func:`aimfair.selective.summary.block_name`; if those are fewer than ``least``, the largest
    modules further inside that are at least as many, or the innermost. A block may be a module that contains others,
    such as the stem of a network with numbered layers: then it consists of the modules inside that are its own. A
    parameter that no such module holds is listed by its own name.
    """
    deepest = max(name.count(".") for name in names)
    return next(
        (found for finer in range(deepest) if len(found := _blocks(names, finer)) >= least), _blocks(names, deepest)
    )


def _blocks(names: Sequence[str], finer: int) -> dict[str, list[str]]:
    """With blocks ``finer`` levels further inside than those of :func:`block_name`."""
    found: dict[str, list[str]] = {}
    block_of = {name: block_name(name, block_name(name).count(".") + 1 + finer) for name in names}
    for name, block in block_of.items():
        module = _module(name, block_of)
        if module not in found.setdefault(block, []):
            found[block].append(module)
    return {modules[0] if len(modules) == 1 else block: modules for block, modules in found.items()}


def _module(name: str, block_of: Mapping[str, str]) -> str:
    """The outermost module around a parameter whose parameters are all of its block."""
    path = name.split(".")
    for depth in range(1, len(path)):
        module = ".".join(path[:depth])
        if all(block == block_of[name] for other, block in block_of.items() if f"{other}.".startswith(f"{module}.")):
            return module
    return name
