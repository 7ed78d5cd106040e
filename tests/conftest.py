"""Fixtures that several packages share."""

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

ALONE = (
    "cluster", "faults/test_serve_kills.py", "faults/test_durable_kills.py", "k8s/test_scrape.py",
    "k8s/test_serving.py", "serve/test_live.py",
)  # fmt: skip
# The longest first, so that the processes that each take the next file end together.
WITH_RAY = (
    "worldlake/test_label.py", "training", "faults/test_run_kills.py", "faults/test_train_kills.py", "faults",
    "worldlake/test_train.py", "worldlake/test_demo.py", "worldlake/test_api.py", "test_examples.py",
    "k8s/test_entrypoints.py", "worldlake/test_doctor.py", "worldlake/test_forget.py", "worldlake/test_full_demo.py",
    "worldlake/test_terminal.py", "labeling/test_run.py", "labeling/test_stop_flag.py", "k8s/test_image.py", *ALONE,
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for names, marker in ((WITH_RAY, "ray"), (ALONE, "alone")):
            if any(_is_of(item, name) for name in names):
                item.add_marker(marker)
    items.sort(key=lambda item: next((i for i, name in enumerate(WITH_RAY) if _is_of(item, name)), len(WITH_RAY)))


def _is_of(item: pytest.Item, name: str) -> bool:
    return item.path.relative_to(Path(__file__).parent).as_posix().startswith(name)


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


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A uri to put a lake at: once in a folder, once in S3."""
    if request.param == "folder":
        return str(tmp_path / "lake")
    bucket: Bucket = request.getfixturevalue("bucket")
    return f"{bucket.uri}/some/lake"
