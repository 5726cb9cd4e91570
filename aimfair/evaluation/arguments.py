"""The arguments of ``aimfair.evaluate``, as arrays of numbers: any values become strings, and their order numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aimfair.base.errors import AimfairError, one_line
from aimfair.data.labels import MAX_VALUES, in_order, wrong_values
from aimfair.data.rows import text_of
from aimfair.evaluation.compare import Partition
from aimfair.evaluation.metrics import Integers, Values

MODEL = "model"
"""The name of a model that has none."""

_ROUNDED = 0.02
"""How far sums of probabilities may be from 1, as those with two digits or in bfloat16 are; scores rescale them."""


@dataclass(frozen=True)
class Rows:
    """What is evaluated.

    Attributes:
        classes: Y names. target: int64 [N].
        predicted: model -> int64 [N]. probabilities: model -> float64 [N, K].
    """

    classes: tuple[str, ...]
    target: Integers
    predicted: dict[str, Integers]
    probabilities: dict[str, Values]
    clusters: list[str] | None

    @property
    def count(self) -> int:
        return len(self.target)

    @classmethod
    def of(
        cls,
        labels: Any,
        predictions: Any,
        probabilities: Any,
        classes: Sequence[Any] | None,
        positive: Any,
        clusters: Any,
    ) -> "Rows":
        """From the arguments of :func:`evaluate`."""
        texts = _texts("labels", labels)
        if not texts:
            raise AimfairError("labels is empty, expected at least one row")
        names = _classes(texts, classes, positive)
        chances = {
            name: _probabilities(_argument("probabilities", name, probabilities), one, len(texts), len(names))
            for name, one in _models("probabilities", probabilities).items()
        }
        predicted = {
            name: _codes(place := _argument("predictions", name, predictions), _texts(place, one, len(texts)), names)
            for name, one in _models("predictions", predictions).items()
        } or {name: shares.argmax(axis=1) for name, shares in chances.items()}
        if not predicted:
            raise AimfairError("give predictions or probabilities")
        if unknown := [name for name in chances if name not in predicted]:
            raise AimfairError(
                f"probabilities of {unknown[0]!r}, but predictions of {', '.join(predicted)}: give both as"
                " model -> rows, under one name"
            )
        together = None if clusters is None else _texts("clusters", clusters, len(texts))
        return cls(names, _codes("labels", texts, names), predicted, chances, together)


def _models(argument: str, given: Any) -> dict[str, Any]:
    """Model -> its rows; empty for None."""
    return {} if given is None else by_name(argument, given, MODEL)


def by_name(argument: str, given: Any, alone: str) -> dict[str, Any]:
    """Name -> rows, of a mapping or a data frame with several; those without a name are called ``alone``."""
    if hasattr(given, "columns") and hasattr(given, "__getitem__"):
        given = {name: given[name] for name in given.columns}
    if not isinstance(given, Mapping):
        return {alone: given}
    named = {str(name): rows for name, rows in given.items()}
    if len(named) < len(given):
        raise AimfairError(f"{argument}: found names {', '.join(map(repr, given))}, expected different ones")
    return named


def _argument(argument: str, model: str, given: Any) -> str:
    return f"{argument}[{model!r}]" if isinstance(given, Mapping) else argument


def _array(place: str, values: Any, dtype: Any = None) -> npt.NDArray[Any]:
    """As numpy has it; tensors also if they require a gradient, are bfloat16 or on a GPU."""
    try:
        if hasattr(values, "detach"):
            values = values.detach().cpu()
            values = values.double() if values.is_floating_point() else values
        if isinstance(values, (list, tuple)) and dtype is None:  # numpy would make strings of a NaN among strings
            array = np.empty(len(values), dtype=object)
            array[:] = [one.item() if hasattr(one, "item") else one for one in values]
            return array
        return np.ma.asanyarray(values, dtype=dtype) if np.ma.isMaskedArray(values) else np.asarray(values, dtype=dtype)
    except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
        raise AimfairError(f"{place}: cannot be used as an array: {one_line(error)}") from error


def _texts(place: str, values: Any, count: int | None = None, *, missing: bool = False) -> list[str]:
    """The values as strings, "" for what is missing; booleans are 0 and 1.

    Args:
        count: expected; None: any.
        missing: whether values may be missing.
    """
    array = _array(place, values)
    if array.ndim != 1 or (count is not None and len(array) != count):
        expected = "one value per row" if count is None else f"({count},) as labels"
        raise AimfairError(f"{place}: found shape {array.shape}, expected {expected}")
    cells = array.tolist()
    try:
        known = {value: _text(value) for value in set(cells)}  # far fewer than rows
        texts = [known[value] for value in cells]
    except TypeError:  # a list or another value that has no hash, and no text either
        texts = [_text(value) for value in cells]
    for row, text in enumerate(texts) if None in texts or "" in texts else ():
        if text is None or (text == "" and not missing):
            found = "is missing" if text == "" else f"is {cells[row]!r}"
            raise AimfairError(f"{place}[{row}] {found}, expected a string, an integer or a boolean")
    return [text for text in texts if text is not None]


def _text(value: Any) -> str | None:
    """As :func:`text_of`; booleans, as predictions like p > 0.5 are, are 0 and 1, and NA and NaT of pandas ""."""
    if type(value).__name__ in ("NAType", "NaTType"):
        return ""
    value = value.item() if hasattr(value, "item") else value
    return text_of(int(value) if isinstance(value, bool) else value)


def _classes(labels: list[str], given: Sequence[Any] | None, positive: Any) -> tuple[str, ...]:
    try:
        names = in_order(set(labels)) if given is None else tuple(_texts("classes", list(given)))
    except TypeError:
        raise AimfairError(f"classes={given!r}: expected the names of all classes, in order") from None
    if len(names) < 2 or len(set(names)) < len(names):
        raise AimfairError(f"classes: found {', '.join(names)}, expected two or more, each once")
    if len(names) > MAX_VALUES:
        raise AimfairError(
            f"labels hold {len(names):,} classes, such as {names[0]!r} and {names[1]!r}, expected at most {MAX_VALUES}"
        )
    if positive is None:
        return names
    chosen = _text(positive)
    if len(names) != 2 or chosen not in names:
        raise AimfairError(f"positive={positive!r}: expected one of two classes, found the classes {', '.join(names)}")
    return names if names[1] == chosen else names[::-1]


def _codes(place: str, texts: list[str], names: tuple[str, ...]) -> Integers:
    numbers = {name: number for number, name in enumerate(names)}
    for row, text in enumerate(texts):
        if text not in numbers:
            raise AimfairError(
                f"{place}[{row}] is {text!r}, expected one of the classes {', '.join(names[:10])}, written as in the"
                " labels; where there are more than the labels hold, name all with classes"
            )
    return np.array([numbers[text] for text in texts], dtype=np.int64)


def _probabilities(place: str, values: Any, rows: int, classes: int) -> Values:
    """float64 [N, K]."""
    shares = _array(place, values, np.float64)
    if np.ma.is_masked(shares):
        raise AimfairError(f"{place}: found masked values, expected probabilities in every row")
    expected = f"({rows}, {classes})" + (f" or ({rows},) of the positive class" if classes == 2 else "")
    if shares.shape == (rows,) and classes == 2:
        shares = np.stack([1 - shares, shares], axis=1)
    if shares.shape != (rows, classes):
        raise AimfairError(f"{place}: found shape {shares.shape}, expected {expected}")
    wrong = ~((shares >= 0) & (shares <= 1)).all(axis=1) | (np.abs(shares.sum(axis=1) - 1) > _ROUNDED)
    if wrong.any():
        row = int(wrong.argmax())
        raise AimfairError(
            f"{place}[{row}] is {shares[row].tolist()}, expected probabilities in [0, 1] that sum to 1; logits need a"
            " softmax first"
        )
    return shares


def partition(place: str, values: Any, count: int) -> Partition:
    """The rows by the values of an attribute; -1 where it is missing.

    Args:
        place: of ``values`` [N], in errors.
    """
    texts = _texts(place, values, count, missing=True)
    names = in_order({text for text in texts if text})
    if wrong := wrong_values(names):
        raise AimfairError(f"{place}: found {wrong}")
    numbers = {name: number for number, name in enumerate(names)} | {"": -1}
    return Partition(names, np.array([numbers[text] for text in texts], dtype=np.int64))


def crossed(one: Partition, other: Partition) -> Partition:
    """Every combination of two values; -1 where either is missing."""
    both = one & other
    return Partition(both.names, np.where((one.values < 0) | (other.values < 0), -1, both.values))
