"""Output of the commands on a terminal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lake.runs import Run, new_run_id
from lake.tables import Lake
from sample_world.clips import write_folder
from tests.lake.filled import fill
from tests.worldlake.command import on_terminal, worldlake

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def lines(output: str) -> list[str]:
    return [line.rstrip() for line in re.split(r"[\r\n]+", _ESCAPES.sub("", output))]


def test_progress_shows_what_was_counted(tmp_path: Path) -> None:
    write_folder(tmp_path / "videos", [60_000], frames=50)
    code, output = on_terminal("ingest", str(tmp_path / "videos"), "--lake", str(tmp_path / "lake"))
    assert code == 0, output
    assert any(line.startswith("1 file listed = 1 new") for line in lines(output)), output
    assert "Traceback" not in output


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_demo_runs_on_a_terminal(tmp_path: Path) -> None:
    code, output = on_terminal("demo", "--folder", str(tmp_path / "demo"), "--clips", "1", columns=200)
    assert code == 0, output
    assert any("label" in line and "1 of 1 video; accepted" in line for line in lines(output)), output
    # Nothing of Ray's core, its workers, or the warnings of a library.
    assert not [line for line in lines(output) if re.search(r"\.cc:|raylet|ray::|Warning", line)], output


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    fill(Lake(str(tmp_path / ":car:")), videos=1)
    code, output = worldlake("status", "--lake", str(tmp_path / ":car:"))
    assert (code, ":car:" in output) == (0, True), output
    assert ":car:" in worldlake("status", "--lake", str(tmp_path / ":car:"), "--json")[1]


def test_a_table_of_runs_fits_eighty_columns(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    fill(lake, videos=1)
    run_id = new_run_id()
    with Run(lake, run_id, "label", {}, labeler_id="aaaaaaaa00000001", counts={"accepted": 1_234_567}):
        pass
    code, output = on_terminal("status", "--lake", lake.uri)
    assert code == 0, output
    (line,) = [line for line in lines(output) if run_id in line]
    assert line.split()[0] == run_id
    assert "1234567" in line or "1,234,567" in line
    assert max(map(len, lines(output))) <= max(80, len(f"{lake.uri}: 1 video"))
