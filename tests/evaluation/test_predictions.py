"""No method can take the place of a label in predictions.csv."""

from pathlib import Path

from aimfair.evaluation.predictions import LABELS, Predictions, column


def test_columns_never_collide() -> None:
    methods = ["biased", "aimfair", *LABELS]
    header = [*LABELS, "attribute target", *map(column, methods)]
    assert len(set(header)) == len(header)
    assert header[4:6] == ["biased", "aimfair"], "others keep their names"


def test_a_method_that_is_called_as_a_label_is_read_from_its_own_column(tmp_path: Path) -> None:
    folder = tmp_path / "seeds" / "1"
    folder.mkdir(parents=True)
    header = ",".join([*LABELS, "biased", column("target")])
    (folder / "predictions.csv").write_text(f"{header}\nx,0,1,1,1\ny,1,0,1,0\n")
    found = Predictions.load(tmp_path, [1], "target")
    assert found.target.tolist() == [0, 1]
    assert found.predicted.tolist() == [[1, 0]]
