"""Log lines of the command: text for people, JSON where Ray is told to log so."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from labeling.run import Summary
from lake.tables import Lake
from tests.lake.filled import fill
from tests.worldlake.command import worldlake
from worldlake import console
from worldlake.commands.label import in_words, show


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = console.log.handlers[:], console.log.level, console.log.propagate
    yield
    console.log.handlers[:], console.log.level, console.log.propagate = before


def test_a_line_of_json_says_of_which_run_it_is(
    restored: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_LOGGING_CONFIG_ENCODING", "JSON")
    console.setup()
    console.log.warning("commit of %s failed", "progress", extra={"run_id": "r"})
    try:
        raise ValueError("in vain")
    except ValueError as error:
        console.log.error("crashed", exc_info=error)
    warning, crash = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert warning.keys() == {"asctime", "levelname", "message", "run_id"}
    assert (warning["levelname"], warning["message"], warning["run_id"]) == (
        "WARNING",
        "commit of progress failed",
        "r",
    )
    assert "ValueError: in vain" in crash["exc_text"]


def test_without_it_a_line_is_text(
    restored: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_LOGGING_CONFIG_ENCODING", raising=False)
    console.setup()
    console.log.warning("slow", extra={"run_id": "r"})
    assert capsys.readouterr().err.endswith(" WARNING slow\n")


@pytest.mark.parametrize("encoding", ["JSON", "TEXT"])
def test_colors_of_a_library_stay_out_of_the_log(
    restored: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], encoding: str
) -> None:
    monkeypatch.setenv("RAY_LOGGING_CONFIG_ENCODING", encoding)
    console.setup()
    error = OSError("Generic S3 error \x1b[31m↳\x1b[0m 503 Service Unavailable")
    console.log.warning("commit failed: %s", error)
    console.log.error("crashed", exc_info=error)
    said = capsys.readouterr().err
    assert "503 Service Unavailable" in said
    assert "\x1b" not in said
    assert "u001b" not in said


def test_a_line_of_progress_says_how_much_there_is(
    restored: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console.setup()
    monkeypatch.setattr(console, "_LOG_EVERY_S", 0)
    with console.counter("label", unit="video") as counter:
        show(3, {"videos_finished": 2, "videos_failed": 1, "videos_pending": 1, "accepted": 0}, counter)
    with console.counter("ingest") as counter:
        counter(5, {"new": 4})
    videos, files = capsys.readouterr().err.splitlines()
    assert videos.endswith(" label: 3 of 4 videos; videos failed 1")
    assert files.endswith(" ingest: 5; new 4")


def test_a_run_that_rejected_pairs_ends_with_the_query_that_says_why(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "a lake"))
    fill(lake, videos=1)
    counts = {"videos_finished": 1, "videos_failed": 0, "accepted": 1, "rejected": 1, "failed": 0}
    counts |= {"videos_without_pairs": 0, "spans_failed": 0}
    summary = Summary("r", "l", "p", "finished", counts, 1.0)
    line, why = in_words(summary, lake.uri)
    assert line.endswith(": 1 video finished, 0 failed; 1 pair accepted, 1 rejected, 0 failed")
    command = shlex.split(why.removeprefix("why rejected: "))
    assert command[0] == "worldlake"
    code, output = worldlake(*command[1:])
    assert (code, "rejected_by" in output) == (0, True), output
    assert len(in_words(replace(summary, counts=counts | {"rejected": 0}), lake.uri)) == 1


def test_the_end_of_a_run_counts_what_gave_nothing() -> None:
    counts = {"videos_finished": 3, "videos_failed": 1, "accepted": 4, "rejected": 1, "failed": 0}
    counts |= {"videos_without_pairs": 1, "spans_failed": 2}
    assert (
        Summary("r", "l", "p", "finished", counts, 1.0)
        .text()
        .endswith(
            ": 3 videos finished (1 without a frame pair; why: `note` in `progress`), 1 failed; 4 pairs accepted, "
            "1 rejected, 0 failed; 2 spans of video could not be decoded; why: `failures`"
        )
    )
