"""A run on shards ends as one on single files."""

import io
import json
import tarfile
from csv import DictReader
from pathlib import Path

import pytest

from aimfair.run.directory import Run
from aimfair.stages.pipeline import run_stages
from tests.tiny_run import PROTECTED, TARGET, settings


@pytest.mark.slow
@pytest.mark.parametrize("keep_decoded", [True, False])
def test_a_run_on_shards_has_the_results_of_one_on_files(tiny: Path, tmp_path: Path, keep_decoded: bool) -> None:
    table = (tiny / "photographs" / "labels.csv").read_text()
    rows = sorted(DictReader(table.splitlines()), key=lambda row: row["file"])
    (tmp_path / "shards").mkdir()
    for start in range(0, len(rows), 20):
        with tarfile.open(tmp_path / "shards" / f"{start:03d}.tar", "w") as tar:
            for row in rows[start : start + 20]:
                tar.add(tiny / "photographs" / row["file"], row["file"])
                data = json.dumps(row).encode()
                member = tarfile.TarInfo(row["file"].replace(".png", ".json"))
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    data = {"kind": "webdataset", "target": TARGET, "protected": PROTECTED, "keep_decoded": keep_decoded}
    with Run.open(tmp_path / "run", settings(tmp_path / "shards", data=data), quiet=True) as run:
        run_stages(run)
    found, expected = (json.loads((folder / "run" / "results.json").read_bytes()) for folder in (tmp_path, tiny))
    assert found["methods"] == expected["methods"]
