from torch import Tensor

from aimfair.selective.build import BuildInfo

def build_info() -> BuildInfo: ...
def cpu_paths() -> list[str]: ...
def set_cpu_path(name: str, /) -> None: ...

class PlanMemory:
    """The addresses that a plan holds, with sizes, dtypes and devices; csrc/torch/plan_memory.h."""

    def __init__(self, lists: list[list[Tensor]], grads: list[Tensor], writes_grads: bool = False) -> None: ...
    def holds(self, lists: list[list[Tensor]], /) -> bool:
        """Whether these are still the tensors of the plan, at the same addresses."""

    def moved_grads(self, grads: list[Tensor], /) -> list[int] | None:
        """The new addresses of all gradients, empty if none has moved; None if the call needs another plan.

        That is so if anything else differs from the last call, or a gradient overlaps what the call writes.
        """
