"""The demo as its user runs it, and its report when a source is gone since."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lake.tables import Lake
from tests.media import real_clips
from worldlake.report import write_report

pytestmark = [pytest.mark.ray, pytest.mark.slow]

CLIPS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    program = str(Path(sys.executable).with_name("worldlake"))
    command = [program, "demo", "--folder", str(folder / "demo"), "--clips", str(CLIPS), "--json"]
    done = subprocess.run([*command, "--videos", str(real_clips()[0])], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    return found


def test_the_demo_labels_and_says_how_well(result: dict[str, Any]) -> None:
    (labeler,) = result["status"]["labelers"]
    assert labeler["balances"]
    assert labeler["videos"] == {"listed": CLIPS + 1, "finished": CLIPS + 1, "failed": 0, "pending": 0}
    named = result["figures"]["one event or none, named exactly"]
    assert named["of"] > CLIPS
    assert named["right"] / named["of"] > 0.8
    page = Path(result["report"]).read_text()
    assert page.count("data:image/jpeg") >= 2 * named["of"]
    assert "rejected by" in page


def test_a_report_without_its_source_says_so(result: dict[str, Any], folder: Path) -> None:
    lake = Lake(str(folder / "demo" / "lake"))
    for clip in (folder / "demo" / "videos").glob("*.mp4"):
        clip.unlink()
    (labeler,) = result["status"]["labelers"]
    rejected = lake.read("rejections", ["dataset"])["dataset"].to_pylist().count("sample-world")
    figures: dict[str, Any] = {"auroc": {}}
    report = folder / "report.html"
    write_report(report, lake, labeler["labeler_id"], {"labelers": [labeler]}, figures, [])
    assert rejected
    assert report.read_text().count("The video is gone") == rejected
