"""The methods by their kind."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from aimfair.methods.dfr import dfr
from aimfair.methods.group_dro import group_dro
from aimfair.methods.jtt import jtt
from aimfair.methods.method_settings import MethodSettings
from aimfair.methods.plain import balanced_resampling, erm, real_and_synthetic, synthetic_only
from aimfair.methods.tune import tune
from aimfair.methods.work import Trained, Work


@dataclass(frozen=True)
class Kind:
    """
    Attributes:
        run: trains the model.
        from_biased: starts from the biased model with the settings ``finetune``; else from the initial model with
            ``train``.
        synthetic: trains on balanced synthetic images, by themselves or among others.
        reads_groups: uses group labels of real images, of training or validation.
        own: settings of the method that its result depends on, besides those of the training.
    """

    run: Callable[[Work], Trained]
    from_biased: bool = False
    synthetic: bool = False
    reads_groups: bool = False
    own: tuple[str, ...] = ()


_KINDS = {
    "tune": Kind(tune, from_biased=True, synthetic=True),
    "erm": Kind(erm),
    "synthetic_only": Kind(synthetic_only, synthetic=True),
    "real_and_synthetic": Kind(real_and_synthetic, synthetic=True),
    "balanced_resampling": Kind(balanced_resampling, reads_groups=True),
    "group_dro": Kind(group_dro, reads_groups=True, own=("step_size", "adjustment")),
    "jtt": Kind(jtt, own=("first_epochs", "upweight")),
    "dfr": Kind(dfr, from_biased=True, reads_groups=True, own=("balanced_from", "head")),
}


def kind_of(method: MethodSettings) -> Kind:
    """What a method is. With ``balanced_from: synthetic`` dfr reads the labels that its images were made for."""
    kind = _KINDS[method.kind]
    if method.kind == "dfr" and method.balanced_from == "synthetic":
        return replace(kind, synthetic=True, reads_groups=False)
    return kind
