"""Fixtures that several packages share."""

import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from tests.media import MISSING, Medium, make_corpus
from tests.seaweed import Seaweed
from tests.skips import pytest_make_collect_report as pytest_make_collect_report
from tests.skips import pytest_runtest_makereport as pytest_runtest_makereport

# Lakes of tests may be lost with the machine, and a slow disk takes longer to flush than a test to run.
os.environ.setdefault("WORLDLAKE_FSYNC", "off")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what starts Ray first: it takes longest, and processes that each take the next file should end together."""
    with_ray = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in with_ray)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """The address of a Ray on this machine that tests share, with this process as one of its drivers.

    For tests that neither kill nor count its processes; those start their own.
    """
    import ray

    # Else it asks for a token that only processes of its own know.
    os.environ["RAY_AUTH_MODE"] = "disabled"
    context = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture
def on_cluster(ray_cluster: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let commands connect to the shared Ray; returns its address."""
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster)
    return ray_cluster


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Medium]:
    """A video of every kind that has to be survived, by name."""
    if shutil.which("ffmpeg") is None:
        pytest.skip(MISSING)
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """A real S3 server, started when the first test wants it; a test that stops it starts it again."""
    server = Seaweed(tmp_path_factory.mktemp("seaweed"))
    server.start()
    yield server
    server.stop()


@dataclass(frozen=True)
class Bucket:
    """A fresh bucket on a server that the AWS environment points to."""

    server: Seaweed
    name: str

    @property
    def uri(self) -> str:
        return f"s3://{self.name}"

    def put(self, key: str, content: bytes | Path) -> None:
        body = content.read_bytes() if isinstance(content, Path) else content
        self.server.client().put_object(Bucket=self.name, Key=key, Body=body)


@pytest.fixture
def bucket(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    made = Bucket(seaweed, f"lake-{uuid4().hex[:12]}")
    seaweed.client().create_bucket(Bucket=made.name)
    return made


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A uri to put a lake at: once in a folder, once in S3."""
    if request.param == "folder":
        return str(tmp_path / "lake")
    bucket: Bucket = request.getfixturevalue("bucket")
    return f"{bucket.uri}/some/lake"
