"""What is not installed is named in one line, with the command that installs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lake.tables import Lake

# A package that cannot be imported, as if it were not installed.
PROGRAM = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from worldlake.cli import run
sys.exit(run(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("package", "named", "command", "extra"),
    [
        ("fastapi", "fastapi", ["serve", "--lake", "LAKE"], "serve"),
        # transformers looks for it as well, and does not say what it missed.
        ("tensorboard", "", ["train", "world", "--lake", "LAKE", "--steps", "1"], "train"),
        ("rouge_score", "rouge_score", ["evaluate", "dynamics", "--lake", "LAKE"], "eval"),
    ],
)
def test_an_absent_package_is_named_with_its_extra(
    package: str, named: str, command: list[str], extra: str, tmp_path: Path
) -> None:
    Lake(str(tmp_path)).create()
    words = [word.replace("LAKE", str(tmp_path)) for word in command]
    done = subprocess.run([sys.executable, "-c", PROGRAM, package, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"worldlake: {command[0]} needs a package that is not installed (")
    assert named in done.stderr
    assert done.stderr.endswith(f"): pip install 'worldlake[{extra}]'\n")


def test_the_base_needs_no_extra() -> None:
    packages = "fastapi,tensorboard,rouge_score,sacrebleu,skimage,httpx,multipart,prometheus_client"
    for command in ("ingest", "label", "status", "sql", "demo", "maintain"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, packages, command, "--help"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
