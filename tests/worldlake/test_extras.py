"""A missing package is named in one line, with the command that installs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lake.tables import Lake

# Commands, apart by semicolons, where packages cannot be imported, as if they were not installed.
PROGRAM = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from worldlake.cli import run
sys.exit(max(run(words.split()) for words in sys.argv[2].split(";")))
"""


def without(packages: str, commands: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", PROGRAM, packages, commands]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("package", "named", "command", "extra"),
    [
        ("fastapi", "fastapi", "serve --lake LAKE", "serve"),
        # transformers looks for it as well, and does not say what it missed.
        pytest.param("tensorboard", "", "train world --lake LAKE --steps 1", "train", marks=pytest.mark.slow),
        ("rouge_score", "rouge_score", "evaluate dynamics --lake LAKE", "eval"),
        pytest.param("rouge_score", "rouge_score", "demo --full --folder LAKE", "all", marks=pytest.mark.slow),
    ],
)
def test_an_absent_package_is_named_with_its_extra(
    package: str, named: str, command: str, extra: str, tmp_path: Path
) -> None:
    Lake(str(tmp_path)).create()
    done = without(package, command.replace("LAKE", str(tmp_path)))
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"worldlake: {command.split()[0]} ")
    assert " needs a package that is not installed (" in done.stderr
    assert named in done.stderr
    assert done.stderr.endswith(f"): pip install 'worldlake[{extra}]'\n")


def test_the_base_needs_no_extra() -> None:
    packages = "fastapi,tensorboard,rouge_score,sacrebleu,skimage,httpx,multipart,prometheus_client"
    commands = ("ingest", "label", "status", "sql", "demo", "maintain")
    done = without(packages, ";".join(f"{command} --help" for command in commands))
    assert done.returncode == 0, done.stderr
    assert all(f"Usage: worldlake {command}" in done.stdout for command in commands)
