"""Processes that read headers may die or hang: their neighbors do not notice."""

import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from lake.errors import Unavailable
from lake.storage import Entry, StorageConfig, local_etag
from lake.video_headers import Header, ProbeError, prober
from tests.answering import Answering
from tests.media import FFMPEG, MISSING, ffmpeg

pytestmark = pytest.mark.skipif(FFMPEG is None, reason=MISSING)


@pytest.fixture
def entries(tmp_path: Path) -> list[Entry]:
    first = tmp_path / "0.mp4"
    source = "testsrc=size=64x48:rate=10:duration=1"
    ffmpeg("-f", "lavfi", "-i", source, str(first))
    for number in range(1, 12):
        shutil.copy2(first, tmp_path / f"{number}.mp4")
    [page] = list(StorageConfig().pages(str(tmp_path)))
    return page


def signal_probers(number: int) -> int:
    """Send a signal to every process that reads headers; returns how many there were."""
    sent = 0
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if "spawn_main" in " ".join(child.cmdline()):
                child.send_signal(number)
                sent += 1
    return sent


@pytest.mark.slow
def test_killed_processes_cost_nothing_but_what_was_killed_twice(entries: list[Entry]) -> None:
    entries = entries * 40
    killed = 0
    with prober(StorageConfig()) as probing:
        results = probing.probe(entries)
        found = [next(results)]
        for _ in range(10):
            killed += signal_probers(signal.SIGKILL)
            found += [next(results) for _ in range(40)]
        found += results
    lost = [one for one in found if not isinstance(one, Header)]
    assert len(found) == len(entries)
    assert killed > 0
    assert len(lost) <= killed / 2, lost


@pytest.mark.slow
def test_a_process_that_hangs_costs_its_own_video(entries: list[Entry], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    # To open a pipe without a writer takes for ever.
    hanging = Entry(str(pipe), 1, local_etag(pipe))
    with prober(StorageConfig(), timeout_s=3.0) as probing:
        found = list(probing.probe([*entries, hanging, *entries]))
    failed = found.pop(len(entries))
    assert isinstance(failed, ProbeError)
    assert (failed.error_type, failed.transient) == ("ChildLost", True)
    assert "hanging" in failed.message
    assert all(isinstance(one, Header) for one in found)


@pytest.mark.slow
def test_processes_that_are_stopped_are_replaced(entries: list[Entry]) -> None:
    with prober(StorageConfig(), timeout_s=10.0) as probing:
        results = probing.probe(entries * 20)
        found = [next(results)]
        signal_probers(signal.SIGSTOP)
        found += results
    assert len(found) == 20 * len(entries)
    assert all(isinstance(one, Header) for one in found)


@pytest.mark.parametrize(
    ("status", "code"), [(403, "RequestTimeTooSkewed"), (400, "ExpiredTokenException"), (400, "TokenRefreshRequired")]
)
def test_what_is_wrong_with_this_machine_is_no_failure_of_a_video(
    status: int, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with (
        Answering(status, code) as store,
        prober(StorageConfig(endpoint_url=store.endpoint)) as probing,
        pytest.raises(Unavailable, match="run the same command again"),
    ):
        list(probing.probe([Entry("s3://bucket/a.mp4", 1000, "etag")]))
