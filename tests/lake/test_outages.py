"""A store or a machine that is away for a while: what is waited for, what is not, and whose fault it is."""

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from botocore.exceptions import ClientError
from deltalake import DeltaTable, write_deltalake

from lake.errors import Unavailable
from lake.s3 import patiently
from lake.storage import StorageConfig
from lake.store_errors import is_transient, outage
from tests.conftest import Bucket


@pytest.mark.slow
def test_an_outage_of_twenty_seconds_is_waited_out(bucket: Bucket, tmp_path: Path) -> None:
    storage = StorageConfig()
    uri = f"{bucket.uri}/table"
    write_deltalake(uri, pa.table({"a": [1]}), storage_options=storage.delta_options(uri))
    bucket.put("a.mp4", b"content")
    [[entry]] = storage.pages(f"{bucket.uri}/a.mp4")
    filesystem, path = storage.filesystem(entry.uri)

    def write_arrow() -> None:
        with filesystem.open_output_stream(f"{bucket.name}/new") as out:
            out.write(b"new")

    def append() -> None:
        write_deltalake(uri, pa.table({"a": [2]}), mode="append", storage_options=storage.delta_options(uri))

    bucket.server.stop()
    try:
        with ThreadPoolExecutor(8) as threads:
            waiting = [
                threads.submit(lambda: list(storage.pages(f"{bucket.uri}/table"))),
                threads.submit(lambda: storage.fetch(entry.uri, entry.etag, tmp_path / "copy")),
                threads.submit(lambda: storage.open_ranged(entry).read()),
                threads.submit(lambda: patiently(lambda: filesystem.open_input_file(path).read())),
                threads.submit(write_arrow),
                threads.submit(append),
            ]
            time.sleep(20)
            assert not any(future.done() for future in waiting)
            bucket.server.start()
            for future in waiting:
                future.result()
    finally:
        if bucket.server.process is None:
            bucket.server.start()
    table = DeltaTable(uri, storage_options=storage.delta_options(uri)).to_pyarrow_table()
    assert sorted(table["a"].to_pylist()) == [1, 2]
    assert (tmp_path / "copy").read_bytes() == b"content"
    assert filesystem.open_input_file(f"{bucket.name}/new").read() == b"new"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EMFILE, errno.EROFS])
def test_what_this_machine_lacks_is_no_fault_of_an_object(code: int) -> None:
    error = OSError(code, os.strerror(code))
    everywhere = outage(error)
    assert is_transient(error)
    assert isinstance(everywhere, Unavailable)
    assert os.strerror(code) in str(everywhere)
    assert "run the same command again" in str(everywhere)


def test_rejected_credentials_are_an_outage_and_a_denied_object_is_not() -> None:
    def answer(status: int, code: str) -> ClientError:
        return ClientError(
            {"Error": {"Code": code, "Message": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject"
        )

    assert outage(answer(400, "ExpiredToken"))
    assert outage(answer(403, "InvalidAccessKeyId"))
    assert outage(answer(403, "AccessDenied")) is None
    assert is_transient(answer(403, "AccessDenied"))
    assert not is_transient(answer(400, "InvalidArgument"))
    assert outage(FileNotFoundError(errno.ENOENT, "gone")) is None


def test_only_a_store_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def denied() -> None:
        raise OSError("When reading information for key 'a': AWS Error ACCESS_DENIED during HeadObject operation")

    monkeypatch.setattr("lake.retry.time.sleep", lambda seconds: pytest.fail("waited"))
    for call in (full, denied):
        with pytest.raises(OSError, match=r"No space|DENIED"):
            patiently(call)


def test_an_answer_that_breaks_off_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = OSError("AWS Error INTERNAL_FAILURE during GetObject operation: Failed to flush response stream")
    answers = iter([broken, b"content"])

    def read() -> bytes:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr("lake.retry.time.sleep", lambda seconds: None)
    assert patiently(read) == b"content"
