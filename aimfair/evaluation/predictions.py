"""The header of predictions.csv, of which every column has a name of its own."""

LABELS = ("id", "target", "protected")
"""The first columns. Further attributes follow as ``attribute NAME``, and then the methods."""


def column(method: str) -> str:
    """Where the predictions of a method stand: under its name, of ``id``, ``target`` and ``protected`` with a prefix.

    Names of methods hold no spaces, so that none is that of an attribute, or of another method with the prefix.
    """
    return f"method {method}" if method in LABELS else method
