"""Log lines of the command: text for people, JSON where Ray is told to log so."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from worldlake import console


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
