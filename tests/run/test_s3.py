"""Inputs and results on an S3 server: moto's, in a thread."""

import logging
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from aimfair.base import storage
from aimfair.base.interrupt import NEVER
from aimfair.base.progress import Progress
from aimfair.base.storage import StorageError, local
from aimfair.config.run_settings import RunSettings
from aimfair.data.load import load_splits
from aimfair.data.settings import DataSettings
from aimfair.run.upload import LIST, Upload
from tests.data.test_shards import settings, write
from tests.tiny_run import PROTECTED, SIZE, TARGET

pytestmark = pytest.mark.slow

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket for each test."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing-key",
        "AWS_SECRET_ACCESS_KEY": "testing-secret",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(storage, "_PAUSES", (0.0,))
    system = fsspec.filesystem("s3")
    system.mkdir("results")
    yield "s3://results"
    system.rm("results", recursive=True)
    fsspec.filesystem("s3").clear_instance_cache()


def test_photographs_are_those_of_the_folder(photographs: Path, bucket: str) -> None:
    fsspec.filesystem("s3").put(str(photographs), "results/photographs", recursive=True)
    labels = {"kind": "table", "target": TARGET, "protected": PROTECTED, "image_size": SIZE}
    here, there = (
        load_splits(DataSettings.model_validate(labels | {"root": root}))
        for root in (photographs, f"{bucket}/photographs")
    )
    for name, part in here.parts.items():
        assert (there.parts[name].images == part.images).all()
        assert there.parts[name].ids == part.ids


def test_shards_are_read_in_place(bucket: str, tmp_path: Path) -> None:
    write("webdataset", tmp_path / "shards", tmp_path)
    fsspec.filesystem("s3").put(str(tmp_path / "shards"), "results/shards", recursive=True)
    here = load_splits(settings("webdataset", tmp_path / "shards"))
    there = load_splits(settings("webdataset", f"{bucket}/shards", keep_decoded=False))  # type: ignore[arg-type]
    for name, part in here.parts.items():
        assert there.parts[name].ids == part.ids
        assert (there.parts[name].images[:] == part.images).all()


def test_results_are_whole_and_listed(bucket: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "seeds").mkdir(parents=True)
    (run / "report.html").write_bytes(b"report")
    (run / "seeds" / "model.safetensors").write_bytes(bytes(60 * 2**20))  # in several parts
    upload = Upload(run, RunSettings(storage=f"{bucket}/mine"), "digest")
    assert upload.send(QUIET, NEVER) == (2, 60 * 2**20 + 6)
    assert upload.send(QUIET, NEVER) == (0, 0)
    copy = local(f"{bucket}/mine")
    assert (copy / "seeds" / "model.safetensors").read_bytes() == bytes(60 * 2**20)
    assert (copy / LIST).exists()


def test_no_such_bucket(bucket: str) -> None:
    with pytest.raises(StorageError, match=r"^data.root: s3://nowhere/x: is not there \(The specified bucket"):
        local("s3://nowhere/x", "data.root")


def test_a_server_that_is_gone(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(
        StorageError, match=r"^data.root: s3://results/x: the connection failed 2 times \(Could not connect"
    ):
        local(f"{bucket}/x", "data.root")


def test_no_credentials(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(StorageError) as caught:
        Upload(tmp_path, RunSettings(storage=f"{bucket}/mine"), "digest")
    assert "credentials" in str(caught.value)
    assert "\n" not in str(caught.value)
