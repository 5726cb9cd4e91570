"""The blocks of a model as modules that share no parameter, so that each can be frozen or tuned alone."""

from collections.abc import Sequence

from aimfair.selective.summary import block_name


def blocks(names: Sequence[str], least: int = 1) -> dict[str, list[str]]:
    """Block -> modules that together hold its parameters and no others, in the order of the model.

    Blocks are those of :func:`aimfair.selective.summary.block_name`, or where those are fewer than ``least`` the
    largest modules further in that are as many; all there are if there are not so many. A block may be a module that
    others lie in, such as the stem of a network whose layers are numbered; then it is made of the modules in it that
    are its own. A parameter that no such module holds goes by its own name.
    """
    deepest = max(name.count(".") for name in names)
    return next(
        (found for finer in range(deepest) if len(found := _blocks(names, finer)) >= least), _blocks(names, deepest)
    )


def _blocks(names: Sequence[str], finer: int) -> dict[str, list[str]]:
    """With blocks ``finer`` levels further in than :func:`block_name` has them."""
    found: dict[str, list[str]] = {}
    block_of = {name: block_name(name, block_name(name).count(".") + 1 + finer) for name in names}
    for name, block in block_of.items():
        module = _module(name, block_of)
        if module not in found.setdefault(block, []):
            found[block].append(module)
    return {modules[0] if len(modules) == 1 else block: modules for block, modules in found.items()}


def members(modules: Sequence[str], names: Sequence[str]) -> list[str]:
    """The parameters in these modules, in order."""
    return [name for name in names if any(_holds(module, name) for module in modules)]


def _module(name: str, block_of: dict[str, str]) -> str:
    """The outermost module around a parameter in which all is of its block."""
    path = name.split(".")
    for depth in range(1, len(path)):
        module = ".".join(path[:depth])
        if all(block == block_of[name] for other, block in block_of.items() if _holds(module, other)):
            return module
    return name


def _holds(module: str, name: str) -> bool:
    return name == module or name.startswith(f"{module}.")
