"""The meaning of errors of boto3, pyarrow and deltalake, from real ones: stores that answer, disks that are full."""

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from deltalake import DeltaTable, write_deltalake

from labeling.stream import VERIFIED
from labeling.write import Write
from lake import s3
from lake.errors import Refused, Unavailable
from lake.storage import StorageConfig
from lake.store_errors import final_error, outage
from lake.tables import Lake
from tests.answering import Answering
from tests.conftest import Bucket
from tests.worldlake.command import worldlake

LAKE = "s3://bucket/lake"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system: needs root")


def read_boto(storage: StorageConfig) -> None:
    storage.s3_client().get_object(Bucket="bucket", Key="lake/object")


def write_arrow(storage: StorageConfig) -> None:
    filesystem, path = storage.filesystem(LAKE)
    with filesystem.open_output_stream(f"{path}/object") as out:
        out.write(b"content")


def open_delta(storage: StorageConfig) -> None:
    DeltaTable(LAKE, storage_options=storage.delta_options(LAKE))


def append_delta(storage: StorageConfig) -> None:
    write_deltalake(LAKE, pa.table({"a": [1]}), mode="append", storage_options=storage.delta_options(LAKE))


CLIENTS = (read_boto, write_arrow, open_delta, append_delta)


def arrow_without_patience(store: Answering) -> pafs.FileSystem:
    return pafs.S3FileSystem(
        access_key="key",
        secret_key="secret",
        region="us-east-1",
        endpoint_override=store.endpoint,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=1),
    )


def error_of(call: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - of whatever type it is
        call()
    return caught.value


def said(error: BaseException, kind: type[Exception], uri: str = LAKE) -> str:
    """The line that is raised instead of an error."""
    final = final_error(error, uri)
    assert type(final) is kind, f"{final!r} for {error!r}"
    assert "\n" not in str(final)
    assert "\x1b" not in str(final)
    return str(final)


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)


@pytest.mark.slow
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    ("status", "code", "kind", "line"),
    [
        (403, "AccessDenied", Refused, "need s3:ListBucket"),
        (400, "ExpiredToken", Unavailable, "the credentials have expired"),
        (400, "ExpiredTokenException", Unavailable, "the credentials have expired"),
        (400, "TokenRefreshRequired", Unavailable, "the credentials have expired"),
        (403, "InvalidAccessKeyId", Unavailable, "rejects the credentials"),
        (403, "SignatureDoesNotMatch", Unavailable, "rejects the credentials"),
        (404, "NoSuchBucket", Refused, "does not exist"),
        (403, "QuotaExceeded", Unavailable, "the store is full"),
        (400, "InvalidArgument", Refused, "InvalidArgument, what it means"),
    ],
)
def test_what_no_retry_can_help_is_said_at_once(
    status: int, code: str, kind: type[Exception], line: str, client: Callable[[StorageConfig], None]
) -> None:
    with Answering(status, code) as store:
        storage = StorageConfig(endpoint_url=store.endpoint)
        begun = time.monotonic()
        error = error_of(lambda: client(storage))
    assert line in said(error, kind)
    # Retries would take minutes.
    assert time.monotonic() - begun < 30
    assert len(store.requests) <= 2


@pytest.mark.parametrize(
    ("status", "code", "line"),
    [
        (400, "RequestExpired", "the clock of this machine is wrong, or its credentials have expired"),
        (403, "RequestTimeTooSkewed", "the clock of this machine is wrong (R"),
    ],
)
def test_a_wrong_clock_is_the_machines_fault(status: int, code: str, line: str) -> None:
    with Answering(status, code) as store:
        storage = StorageConfig(endpoint_url=store.endpoint)
        # With more attempts the AWS SDK in pyarrow sets its own clock by the answer and asks again.
        arrow = arrow_without_patience(store)
        errors = [error_of(lambda client=client: client(storage)) for client in (read_boto, open_delta, append_delta)]
        errors.append(error_of(lambda: arrow.open_output_stream("bucket/lake/object").close()))
        with pytest.raises(Unavailable) as at_the_start:
            storage.check(LAKE)
    for error in errors:
        assert line.lower().replace("_", "") in said(error, Unavailable).lower().replace("_", "")
        assert outage(error)
    assert line in str(at_the_start.value)


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (400, "ExpiredToken")])
def test_a_denial_without_a_reason_names_all_that_it_may_be(status: int, code: str) -> None:
    """The answer to HEAD has no body."""
    with Answering(status, code) as store:
        storage = StorageConfig(endpoint_url=store.endpoint)
        filesystem, path = storage.filesystem(LAKE)
        errors = (
            error_of(lambda: filesystem.get_file_info(path)),
            error_of(lambda: storage.s3_client().head_object(Bucket="bucket", Key="lake")),
        )
    for error in errors:
        assert "may have expired, the clock of this machine may be wrong" in said(error, Unavailable)
        assert not s3.is_away(error)


def test_another_region_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with Answering(301, "PermanentRedirect") as store:
        storage = StorageConfig(endpoint_url=store.endpoint)
        for client in (write_arrow, open_delta):
            assert "check the uri and AWS_REGION" in said(error_of(lambda client=client: client(storage)), Refused)


@pytest.mark.parametrize(
    ("status", "code"),
    [(503, "SlowDown"), (500, "InternalError"), (429, "TooManyRequests"), (409, "OperationAborted"),
     (412, "PreconditionFailed"), (400, "RequestTimeout")],
)  # fmt: skip
def test_what_may_pass_is_not_final(status: int, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PATIENCE_S", 0.2)
    with Answering(status, code) as store:
        storage = StorageConfig(endpoint_url=store.endpoint)
        arrow = arrow_without_patience(store)
        errors = [
            error_of(lambda: storage.s3_client().get_object(Bucket="bucket", Key="lake")),
            error_of(lambda: arrow.open_output_stream("bucket/lake/object").close()),
            error_of(lambda: open_delta(storage)),
        ]
    for error in errors:
        assert final_error(error, LAKE) is None, error


def test_nobody_answers_is_not_final(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PATIENCE_S", 0.2)
    storage = StorageConfig(endpoint_url="http://127.0.0.1:1")
    for client in (read_boto, open_delta):
        assert final_error(error_of(lambda client=client: client(storage)), LAKE) is None


def test_wrong_keys_of_a_real_store(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    storage = StorageConfig()
    for client in CLIENTS:
        assert "rejects the credentials" in said(error_of(lambda client=client: client(storage)), Unavailable)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "unknown")
    for client in CLIENTS:
        assert "rejects the credentials" in said(error_of(lambda client=client: client(storage)), Unavailable)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[str]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield str(folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def local_errors(folder: str) -> list[BaseException]:
    """The errors of pyarrow and deltalake that cannot write 10 MB into a folder."""
    rows = pa.table({"a": [os.urandom(1000) for _ in range(10_000)]})

    def arrow() -> None:
        with pafs.LocalFileSystem().open_output_stream(f"{folder}/file") as out:
            out.write(bytes(10_000_000))

    return [error_of(arrow), error_of(lambda: write_deltalake(f"{folder}/table", rows))]


@as_root
@pytest.mark.parametrize(("options", "line"), [("size=200k", "No space left"), ("ro", "Read-only file system")])
def test_a_disk_that_cannot_be_written(tmp_path: Path, options: str, line: str) -> None:
    with mounted(tmp_path / "disk", options) as folder:
        errors = local_errors(folder)
    for error in errors:
        text = said(error, Unavailable, folder)
        assert line in text
        assert "run the same command again" in text


def test_a_folder_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o500)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        errors = local_errors(str(tmp_path / "theirs"))
    finally:
        os.seteuid(user)
    for error in errors:
        assert "check its permissions" in said(error, Refused, "theirs")


def test_other_errors_are_not_final() -> None:
    for error in (FileNotFoundError(errno.ENOENT, "gone"), ValueError("a wrong value"), OSError(errno.EIO, "broken")):
        assert final_error(error, LAKE) is None


def test_credentials_that_a_tool_renews_are_picked_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    path = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    storage = StorageConfig()
    for number, token in enumerate(("old", "new")):
        path.write_text(f"[default]\naws_access_key_id=k\naws_secret_access_key=s\naws_session_token={token}\n")
        os.utime(path, ns=(number, number))
        assert storage.delta_options(LAKE)["aws_session_token"] == token


def test_a_worker_that_cannot_write_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pa.Table.from_pylist(
        [{"video_id": "v", "uri": "v.mp4", "triple_id": "t", "reasons": [], "obs": b"o", "next_obs": b"n"}],
        schema=VERIFIED,
    )
    with Answering(400, "ExpiredToken") as store:
        lake = Lake(LAKE, StorageConfig(endpoint_url=store.endpoint))
        with pytest.raises(Unavailable, match="the credentials have expired"):
            Write(lake, "run", "labeler", "policy", "pyav")(rows)


@pytest.mark.parametrize(
    ("status", "code", "exit_code", "line"),
    [(400, "ExpiredToken", 1, "credentials have expired"), (403, "AccessDenied", 2, "is denied"),
     (403, "RequestTimeTooSkewed", 1, "set the clock of this machine")],
)  # fmt: skip
def test_a_command_ends_with_one_line(status: int, code: str, exit_code: int, line: str, tmp_path: Path) -> None:
    with Answering(status, code) as store:
        for arguments in (
            ["status", "--lake", LAKE],
            ["ingest", "s3://bucket/videos", "--lake", str(tmp_path / "lake")],
        ):
            code_, said_ = worldlake(*arguments, "--endpoint-url", store.endpoint)
            assert (code_, said_.count("\n")) == (exit_code, 1), said_
            assert line in said_


def test_an_empty_bucket_is_refused(tmp_path: Path) -> None:
    code, line = worldlake("ingest", "s3://b/v", "--lake", str(tmp_path / "lake"), "--anonymous", "")
    assert code == 2
    assert "--anonymous: give a bucket" in line
