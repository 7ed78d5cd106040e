"""Processes that read headers may die or hang: their neighbours do not notice."""

import os
import shutil
import signal
from pathlib import Path

import psutil
import pytest

from lake.probe import Header, ProbeError, prober
from lake.storage import Entry, StorageConfig
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


def signal_probers(number: int) -> None:
    for child in psutil.Process().children():
        if "spawn_main" in " ".join(child.cmdline()):
            os.kill(child.pid, number)


def test_a_killed_process_costs_nothing(entries: list[Entry]) -> None:
    with prober(StorageConfig()) as probing:
        results = probing.probe(entries)
        found = [next(results)]
        signal_probers(signal.SIGKILL)
        found += results
    assert len(found) == len(entries)
    assert all(isinstance(one, Header) for one in found)


def test_a_process_that_hangs_costs_its_own_video(entries: list[Entry], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lake.probe.WORKERS", 1)
    monkeypatch.setattr("lake.probe.TIMEOUT_S", 8.0)
    with prober(StorageConfig()) as probing:
        results = probing.probe(entries * 20)
        found = [next(results)]
        signal_probers(signal.SIGSTOP)
        found += results
    failed = [one for one in found if isinstance(one, ProbeError)]
    assert len(found) == 20 * len(entries)
    assert [(one.error_type, one.transient) for one in failed] == [("TimeoutError", True)]
