"""`make test` with programs in the place of the environment's that only note how they were called."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is missing")
@pytest.mark.parametrize("fails", ["", "not alone", "-m alone", "alone"])
def test_both_sessions_run_and_either_fails_the_target(tmp_path: Path, fails: str) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "ruff", "mypy", "lint-imports"):
        # A session fails whose options hold the text.
        (programs / name).write_text(
            f'#!/bin/sh\necho "$*" >> calls\ncase "{name} $*" in python*"{fails or "?"}"*) exit 1; esac\n'
        )
        (programs / name).chmod(0o755)
    (tmp_path / ".venv" / "installed").touch()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(["make", "test"], cwd=tmp_path, capture_output=True, text=True, env=environment)
    calls = (tmp_path / "calls").read_text().splitlines()
    sessions = [call for call in calls if "pytest" in call]
    assert ["not alone" in call for call in sessions] == [True, False]
    assert all("--durations" in call for call in sessions)
    assert (done.returncode != 0) == bool(fails)
