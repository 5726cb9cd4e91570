"""Finds the last layer of a classifier by how it computes its logits, not by names or order."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from aimfair.base.errors import AimfairError
from aimfair.selective.parameters import listing
from aimfair.training.execution import logits, named_failure

TWIN = "aimfair_twin"
"""Attribute of a sharded model: the same model on the meta device, since no process can run the one without others."""


def head_names(model: nn.Module, image_size: int, where: str) -> list[str]:
    """The weights and biases of the layer, or layers where several are averaged, whose output gives the logits.

    Runs one zero image and walks the autograd graph back from its logits to the nearest operations that combine
    activations with weight matrices. Every matrix must have the number of classes as a dimension, and every vector on
    the way must be the bias of such a matrix.

    Args:
        model: unchanged on return. image_size: H and W of its images.
        where: prefix of the error.

    Returns:
        names in the order of ``model.named_parameters()``.

    Raises:
        AimfairError: the model has no such layer, or others follow it, such as a learned temperature.
    """
    model = model.__dict__.get(TWIN, model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found, classes = _nearest(model, image_size, where)
    matrices = {names[id(parameter)] for parameter in found if parameter.ndim > 1}
    owners = {name.rpartition(".")[0] for name in matrices}
    fitting = all(classes in parameter.shape for parameter in found if parameter.ndim > 1)
    within = all(names[id(parameter)].rpartition(".")[0] in owners for parameter in found)
    if not (found and fitting and within):
        found_names = listing(sorted(names[id(parameter)] for parameter in found)) or "no weights"
        raise AimfairError(
            f"{where}: the head of the {type(model).__name__} cannot be determined: its {classes} logits come"
            f" from {found_names}, expected a linear layer or a convolution; name it as the method's head"
        )
    wanted = {id(parameter) for parameter in found}
    return [name for identity, name in names.items() if identity in wanted]


def _nearest(model: nn.Module, image_size: int, where: str) -> tuple[list[Tensor], int]:
    """The parameters of the operations nearest to the logits, up to the first with a matrix, and C."""
    parameters = list(model.parameters())
    required, training = [parameter.requires_grad for parameter in parameters], model.training
    image = torch.zeros((1, 3, image_size, image_size), device=parameters[0].device, requires_grad=True)
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        with (
            torch.enable_grad(),
            named_failure(f"{where}: {type(model).__name__} fails on {image_size} x {image_size} pixels"),
        ):
            model.eval()
            scores = logits(model, image)
        return _search(scores.grad_fn, image), scores.shape[1]
    finally:
        model.train(True)
        model.train(training)  # LeViT drops what it caches in evaluation mode only when it leaves it
        for parameter, before in zip(parameters, required, strict=True):
            parameter.requires_grad_(before)


def _search(start: Any, image: Tensor) -> list[Tensor]:
    """Searches backwards from the operation ``start``: a node of the autograd graph, in which a parameter or the image
    is a leaf, ``variable``."""
    from_image = _that_follow_from(start, image)
    found: dict[int, Tensor] = {}
    queue, seen = [start] if start in from_image else [], {start}
    while queue:
        node = queue.pop()
        own = [leaf for other in _inputs(node) if other not in from_image for leaf in _leaves(other)]
        found |= {id(leaf): leaf for leaf in own}
        if any(leaf.ndim > 1 for leaf in own):
            continue
        further = [other for other in _inputs(node) if other in from_image and other not in seen]
        seen |= set(further)
        queue += further
    return list(found.values())


def _inputs(node: Any) -> list[Any]:
    return [other for other, _ in node.next_functions if other is not None]


def _backwards(start: Any) -> Iterator[Any]:
    stack, seen = [start], {start}
    while stack:
        node = stack.pop()
        yield node
        new = [other for other in _inputs(node) if other not in seen]
        seen |= set(new)
        stack += new


def _leaves(start: Any) -> Iterable[Tensor]:
    return (node.variable for node in _backwards(start) if hasattr(node, "variable"))


def _that_follow_from(start: Any, image: Tensor) -> set[Any]:
    """The operations before ``start`` that depend on the image."""
    users: dict[Any, list[Any]] = {}
    ends = []
    for node in list(_backwards(start)) if start is not None else []:
        if getattr(node, "variable", None) is image:
            ends.append(node)
        for other in _inputs(node):
            users.setdefault(other, []).append(node)
    follow, stack = set(ends), ends
    while stack:
        new = [user for user in users.get(stack.pop(), []) if user not in follow]
        follow |= set(new)
        stack += new
    return follow
