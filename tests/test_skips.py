"""The plugin that makes a failure of a skip that nobody expects, in sessions of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.skips import EXPECTED, VARIABLE

ROOT = Path(__file__).parents[1]


def outcome(folder: Path, test: str, *options: str, strict: str = "1") -> tuple[int, str]:
    """Exit code and output of a session over one file of tests."""
    (folder / "test_it.py").write_text(f"import pytest\n{test}\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.skips", "-rs", "--rootdir", str(folder), *options]
    environment = {**os.environ, VARIABLE: strict, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    # Plugins of others take seconds.
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, cwd=folder, env=environment)
    return done.returncode, done.stdout


SKIPS = {
    "inside": "def test_it():\n    pytest.skip({reason!r})",
    "mark": "@pytest.mark.skipif(True, reason={reason!r})\ndef test_it(): pass",
    "fixture": "@pytest.fixture\ndef given():\n    pytest.skip({reason!r})\ndef test_it(given): pass",
    "module": "pytest.skip({reason!r}, allow_module_level=True)",
    "import": "def test_it():\n    pytest.importorskip('no_such_module', reason={reason!r})",
}


@pytest.mark.parametrize("how", SKIPS)
def test_an_unexpected_skip_fails_where_skips_are_strict(tmp_path: Path, how: str) -> None:
    test = SKIPS[how].format(reason="some program is missing")
    code, output = outcome(tmp_path, test)
    assert code != 0
    assert "tests/skips.py does not list the reason: some program is missing" in output
    assert outcome(tmp_path, test, strict="")[0] in (0, 5)


def test_processes_of_their_own_report_it_too(tmp_path: Path) -> None:
    code, output = outcome(
        tmp_path, SKIPS["inside"].format(reason="some program is missing"), "-p", "xdist", "--numprocesses", "1"
    )
    assert code == 1
    assert "some program is missing" in output


@pytest.mark.parametrize("how", ["inside", "mark", "import"])
def test_an_expected_skip_is_one(tmp_path: Path, how: str) -> None:
    code, output = outcome(tmp_path, SKIPS[how].format(reason=EXPECTED[0]))
    assert (code, "1 skipped" in output) == (0, True), output


def test_what_is_known_to_fail_is_not_a_skip(tmp_path: Path) -> None:
    code, output = outcome(tmp_path, "@pytest.mark.xfail(reason='known')\ndef test_it(): assert False")
    assert (code, "1 xfailed" in output) == (0, True), output


def test_every_expected_reason_is_one_that_a_test_gives() -> None:
    sources = [path.read_text() for path in (ROOT / "tests").rglob("*.py") if path.name != "skips.py"]
    assert [reason for reason in EXPECTED if not any(reason in source for source in sources)] == []
