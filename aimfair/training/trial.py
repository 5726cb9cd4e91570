"""A trial of a classifier on a few images: what cannot be trained or evaluated is refused before any work."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aimfair.base.errors import AimfairError
from aimfair.data.images import ImageSet
from aimfair.selective.distributed import is_dtensor, local
from aimfair.selective.parameters import listing
from aimfair.training.execution import logits, named_failure, prepare
from aimfair.training.feed import Normalize
from aimfair.training.settings import ModelSettings


def try_classifier(
    model: nn.Module, settings: ModelSettings, images: ImageSet, classes: int, batch_sizes: Mapping[str, int]
) -> None:
    """Runs one batch in evaluation mode, and one forward and backward in training mode.

    Args:
        model: on its device; its gradients and buffers change. Of a sharded one, every process calls this.
        images: two or more, of the run's size.
        batch_sizes: setting, such as "train.batch_size" -> images of the batches that it gives.

    Raises:
        AimfairError: naming the setting of the model, ``data.image_size`` or the batch size.
    """
    prepare(model, settings)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device, size = next(model.parameters()).device, images.images.shape[1]
    x = Normalize(settings, device)(images.images[:])
    if not x.isfinite().all():
        raise AimfairError(
            f"model.mean, model.std: found {list(settings.mean)} and {list(settings.std)}, which make images infinite"
        )
    target = torch.from_numpy(images.target).to(device)
    what = f"{settings.label}: {type(model).__name__}"
    pixels = f"images of {size} x {size} pixels (data.image_size)"

    made, sharded = dict(model.named_parameters()), any(map(is_dtensor, model.parameters()))
    for count in (len(x), 1):
        with torch.no_grad() if sharded else torch.inference_mode():  # gathered weights outlive the forward pass
            try:
                with named_failure(f"{what} fails on a batch of {count} {pixels}"):
                    model.eval()
                    scores = _logits(model, x[:count], settings)
            except AimfairError as error:
                if settings.channels_last and _runs_contiguous(model, x[:count], settings):
                    raise AimfairError(
                        f"{what} does not take images in channels-last memory: set model.channels_last to false"
                    ) from None
                if half := [name for name, p in model.named_parameters() if p.dtype in (torch.float16, torch.bfloat16)]:
                    raise AimfairError(
                        f"{error}; its weights are half precision ({listing(half, 2)}): make it float32, and set"
                        " model.autocast to bfloat16 to compute in less"
                    ) from error
                raise
        _require_classes(scores, classes, what, settings)
        if not scores.isfinite().all():
            raise AimfairError(f"{what} gives NaN or infinite logits for {pixels}")
    if sharded:
        model.reshard()  # type: ignore[operator]
    now = dict(model.named_parameters())
    if other := [name for name in {**made, **now} if made.get(name) is not now.get(name)]:
        raise AimfairError(
            f"{what} makes or replaces {listing(other)} while it runs; expected parameters that are made with the model"
        )

    for count in sorted({len(x), *(min(of, len(x)) for of in batch_sizes.values())}, reverse=True):
        key = next((f"{key}: found {count}; " for key, of in batch_sizes.items() if of == count < len(x)), "")
        with named_failure(f"{key}{what} fails in training mode on a batch of {count} {pixels}"):
            model.train(True)
            scores = _logits(model, x[:count], settings)
            _require_classes(scores, classes, f"{what} in training mode", settings)
            loss = F.cross_entropy(scores, target[:count])
            if not loss.isfinite():
                raise AimfairError(f"{what} in training mode: its loss is NaN or infinite for {pixels}")
            if not loss.requires_grad:
                raise AimfairError(f"{what}: its logits do not depend on its weights: they were detached, or no weight"
                                   " requires a gradient")  # fmt: skip
            loss.backward()  # type: ignore[no-untyped-call]
        if all(parameter.grad is None for parameter in parameters):
            raise AimfairError(f"{what}: no weight gets a gradient")
        for name, parameter in model.named_parameters():
            if parameter.grad is None:
                continue
            if parameter.grad.layout is not torch.strided:
                raise AimfairError(
                    f"{what}: the gradient of {name} is sparse, which is not supported; set sparse=False"
                )
            if not local(parameter.grad).isfinite().all():
                raise AimfairError(f"{what}: the gradient of {name} is NaN or infinite for {pixels}")
        model.zero_grad()


def _logits(model: nn.Module, x: Tensor, settings: ModelSettings) -> Tensor:
    try:
        return logits(model, x)
    except AimfairError as error:
        raise AimfairError(f"{settings.label}: {error}") from error


def _require_classes(scores: Tensor, classes: int, what: str, settings: ModelSettings) -> None:
    if (found := scores.shape[1]) != classes:
        raise AimfairError(
            f"{what} gives {found} logit{'s' * (found != 1)} for an image, expected {classes}, one for each class of"
            f" the data{_hint(settings, found)}"
        )


def _runs_contiguous(model: nn.Module, x: Tensor, settings: ModelSettings) -> bool:
    prepare(model, settings.model_copy(update={"channels_last": False}))
    try:
        with named_failure(""):
            logits(model, x)
    except AimfairError:
        return False
    finally:
        prepare(model, settings)
    return True


def _hint(settings: ModelSettings, found: int) -> str:
    if found == 1:
        return "; a head with one logit is not supported: give it one output for each class"
    return "; the function must use its argument num_classes" if settings.factory else ""
