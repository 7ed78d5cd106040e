"""A store behind a proxy, and one with a private certificate: every client goes the same way."""

import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from lake import s3
from lake.errors import Refused, Unavailable
from lake.sql import query
from lake.storage import StorageConfig
from lake.tables import Lake
from lake.writer import Writer
from tests.conftest import Bucket
from tests.proxies import NAME, Proxy, Tls, certificates

USER_AGENTS = ("Boto3", "aws-sdk-cpp", "object_store")


@pytest.fixture(autouse=True)
def no_route(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PATIENCE_S", 5)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def tls(bucket: Bucket, authority: tuple[Path, Path, Path]) -> Iterator[Tls]:
    with Tls(bucket.server.ports[3], *authority[1:]) as server:
        yield server


def use_every_client(bucket: Bucket) -> None:
    """Create a lake (deltalake), write a file (pyarrow), list and read (boto3), query (DuckDB over pyarrow)."""
    lake = Lake(f"{bucket.uri}/lake{uuid4().hex}")
    lake.create()
    Writer(lake).append("reviews", [{"triple_id": "0"}])
    with query(lake, "SELECT triple_id FROM reviews") as result:
        assert result.read_all()["triple_id"].to_pylist() == ["0"]
    filesystem, path = lake.storage.filesystem(f"{lake.uri}/file")
    with filesystem.open_output_stream(path) as out:
        out.write(b"content")
    assert any(entry.uri == f"{lake.uri}/file" for page in lake.storage.pages(lake.uri) for entry in page)
    assert lake.storage.get(f"{lake.uri}/file") == b"content"


@pytest.mark.parametrize("login", [None, "someone:p%40ss"])
def test_every_client_goes_through_the_proxy(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, login: str | None
) -> None:
    with Proxy(tmp_path, login and "someone:p@ss") as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{NAME}:{bucket.server.ports[3]}")
        monkeypatch.setenv(
            "HTTP_PROXY", f"http://{login}@127.0.0.1:{proxy.port}" if login else f"127.0.0.1:{proxy.port}"
        )
        use_every_client(bucket)
    for agent in USER_AGENTS:
        assert any(agent in request for request in proxy.requests), (agent, proxy.requests)


def test_every_client_passes_by_the_proxy(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with Proxy(tmp_path) as proxy:
        for name in ("http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", "example.com,127.0.0.1")
        use_every_client(bucket)
    assert not proxy.requests


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "profile"])
def test_every_client_trusts_the_private_authority(
    bucket: Bucket,
    tls: Tls,
    authority: tuple[Path, Path, Path],
    variable: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{tls.port}")
    if variable == "profile":
        (tmp_path / "config").write_text(f"[default]\nca_bundle = {authority[0]}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    else:
        monkeypatch.setenv(variable, str(authority[0]))
    use_every_client(bucket)


@pytest.mark.slow
def test_a_proxy_in_front_of_a_private_certificate(
    bucket: Bucket, tls: Tls, authority: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with Proxy(tmp_path) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://{NAME}:{tls.port}")
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(authority[0]))
        use_every_client(bucket)
    assert len(proxy.requests) >= len(USER_AGENTS)


def test_a_certificate_that_is_not_trusted_is_said_at_once(
    bucket: Bucket, tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{tls.port}")
    begun = time.monotonic()
    with pytest.raises(Unavailable, match=r"is not trusted.*AWS_CA_BUNDLE"):
        StorageConfig().check(f"{bucket.uri}/lake")
    with pytest.raises(Unavailable, match=r"is not trusted.*AWS_CA_BUNDLE"):
        list(StorageConfig().pages(f"{bucket.uri}/lake"))
    # Retries would take minutes.
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_wrong_bundle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None) -> None:
    if content:
        (tmp_path / "bundle").write_text(content)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "bundle"))
    with pytest.raises(Refused, match=r"AWS_CA_BUNDLE names .*/bundle"):
        StorageConfig().check("s3://bucket/lake")
