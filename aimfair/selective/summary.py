"""Printable summaries of sensitivities and masks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """``nnz`` selected of ``numel`` elements in the tensor or block ``name``."""

    name: str
    numel: int
    nnz: int

    @property
    def density(self) -> float:
        return self.nnz / self.numel if self.numel else 0.0


@dataclass(frozen=True)
class MaskSummary:
    """Selected shares in the order of the model; prints as a table of blocks."""

    tensors: list[Share]
    blocks: list[Share]
    total: Share

    def __str__(self) -> str:
        rows = [(s.name, f"{s.numel:,}", f"{s.nnz:,}", f"{s.density:.2%}") for s in [*self.blocks, self.total]]
        return table(("block", "parameters", "selected", "density"), rows)


@dataclass(frozen=True)
class SensitivitySummary:
    """Gradients seen so far; prints as a table.

    Attributes:
        names: the parameters.
        batches: source -> batches.
        norms: source -> root mean square over batches of the gradient norm, per parameter.
        nonfinite: source -> parameter -> NaN and infinite gradient values skipped.
    """

    names: tuple[str, ...]
    batches: Mapping[str, int]
    norms: Mapping[str, Sequence[float]]
    nonfinite: Mapping[str, Mapping[str, int]]

    def __str__(self) -> str:
        rows = [("batches", *(str(count) for count in self.batches.values()))]
        rows += [(name, *(f"{norms[t]:.3e}" for norms in self.norms.values())) for t, name in enumerate(self.names)]
        if any(self.nonfinite.values()):
            rows.append(("non-finite values", *(str(sum(counts.values())) for counts in self.nonfinite.values())))
        return table(("gradient norm", *self.batches), rows)


def summarize(names: Sequence[str], numels: Sequence[int], nnz: Sequence[int], depth: int | None) -> MaskSummary:
    tensors = [Share(*row) for row in zip(names, numels, nnz, strict=True)]
    blocks: dict[str, Share] = {}
    for tensor in tensors:
        name = block_name(tensor.name, depth)
        before = blocks.get(name, Share(name, 0, 0))
        blocks[name] = Share(name, before.numel + tensor.numel, before.nnz + tensor.nnz)
    return MaskSummary(tensors, list(blocks.values()), Share("total", sum(numels), sum(nnz)))


def block_name(name: str, depth: int | None = None) -> str:
    """The block a parameter belongs to: the first ``depth`` levels of its module's path.

    Without ``depth`` a block ends at the first numbered level (``layer1.0``, ``encoder.layer.3``), or is the outermost
    module where no level is numbered.
    """
    path = name.split(".")[:-1]
    if depth is None:
        numbered = [level for level, part in enumerate(path, 1) if part.isdigit()]
        depth = numbered[0] if numbered else 1
    return ".".join(path[:depth]) or name


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A text table: the first column aligned left, the others right."""
    lines = [tuple(header), *(tuple(row) for row in rows)]
    first, *others = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(first), *(cell.rjust(width) for cell, width in zip(line[1:], others, strict=True))])
        for line in lines
    )
