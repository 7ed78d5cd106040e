"""`make` with programs in the place of the environment's that only note how they were called."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = ("python", "pip", "ruff", "codespell", "mypy", "lint-imports", "worldlake")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is missing")

Make = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Run a command that calls make in a copy of the repository: its exit code, and what it called.

    A call fails whose words hold `fails`. `python -m venv` makes an environment of programs that do the same.
    """
    for name in ("Makefile", "pyproject.toml", "constraints.txt", ".ci"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)

    def run(*command: str, fails: str = "nothing") -> tuple[int, list[str]]:
        noting = f"""#!/bin/sh
            echo "${{0##*/}} $*" >> calls
            case "${{0##*/}} $*" in
                *"{fails}"*) exit 1;;
                *"-m venv"*) mkdir -p .venv/bin; for one in {" ".join(PROGRAMS)}; do cp "$0" .venv/bin/$one; done;;
            esac"""
        (tmp_path / "noting").write_text(noting)
        (tmp_path / "noting").chmod(0o755)
        # As another user continuous integration installs no programs.
        (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
        (tmp_path / "id").chmod(0o755)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
        environment |= {"PYTHON": "./noting", "PATH": f"{tmp_path}:{environment['PATH']}"}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
        return done.returncode, (tmp_path / "calls").read_text().splitlines()

    return run


def extras(calls: list[str]) -> list[str]:
    return [call.split("--editable ")[1] for call in calls if "--editable" in call]


def sessions(calls: list[str]) -> list[str]:
    return [call for call in calls if "pytest" in call]


def test_the_demo_installs_no_tools_of_tests(make: Make) -> None:
    code, calls = make("make", "demo")
    assert (code, extras(calls)) == (0, [".[demo]"])
    assert any(call.startswith("worldlake demo") for call in calls)


@pytest.mark.parametrize("fails", ["", "mypy", "pytest"])
def test_test_is_lint_and_one_session(make: Make, fails: str) -> None:
    code, calls = make("make", "test", fails=fails or "nothing")
    assert extras(calls) == [".[demo]", ".[dev]"]
    assert any(call.startswith("mypy") for call in calls)
    assert len(sessions(calls)) == (fails != "mypy")
    assert all("--durations" in call for call in sessions(calls))
    assert (code != 0) == bool(fails)


@pytest.mark.parametrize("fails", ["", "slow and not alone", "slow and alone", "pytest"])
def test_both_sessions_of_test_all_run_and_either_fails_it(make: Make, fails: str) -> None:
    code, calls = make("make", "test-all", fails=fails or "nothing")
    assert ["not alone" in call for call in sessions(calls)] == [True, False]
    assert (code != 0) == bool(fails)


@pytest.mark.parametrize("fails", ["", "mypy", "not slow", "slow and not alone"])
def test_continuous_integration_runs_all_and_fails_if_any_does(make: Make, fails: str) -> None:
    code, calls = make("bash", ".ci/run", fails=fails or "nothing")
    assert len(sessions(calls)) == 3 - (fails == "mypy")
    assert (code != 0) == bool(fails)
