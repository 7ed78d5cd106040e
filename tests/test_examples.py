"""The programs in examples/, run as their docstrings say, on generated clips."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sample_world.clips import write_folder

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments], capture_output=True, text=True, check=False, timeout=280
    )


def test_examples_are_short() -> None:
    assert {path.name: lines for path in EXAMPLES.glob("*.py") if (lines := path.read_text().count("\n")) > 40} == {}


@pytest.mark.parametrize("name", ["ask_a_service.py", "label_a_folder.py", "train.py"])
def test_an_example_without_arguments_says_how_it_is_called(name: str) -> None:
    done = run(name)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"python examples/{name} " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_folder_is_labeled_and_a_model_trained(tmp_path: Path) -> None:
    lake = str(tmp_path / "lake")
    refused = run("label_a_folder.py", str(tmp_path / "nothing"), lake)
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1, refused.stderr
    assert str(tmp_path / "nothing") in refused.stderr

    # The folders name the splits.
    for split, seeds in (("train", range(92_000, 92_003)), ("test", range(92_003, 92_005))):
        write_folder(tmp_path / "videos" / split, seeds, frames=150)
    labeled = run("label_a_folder.py", str(tmp_path / "videos"), lake)
    assert labeled.returncode == 0, labeled.stderr
    assert labeled.stderr == ""
    assert labeled.stdout.startswith("5 new videos, 0 known\n")
    assert "5 videos finished, 0 failed" in labeled.stdout

    trained = run("train.py", lake, "2")
    assert trained.returncode == 0, trained.stderr
    assert "finished at step 2 of 2" in trained.stdout
    assert trained.stdout.count("dB over pixels that change") == 2
