"""`worldlake maintain --upgrade`, killed with SIGKILL around its changes to the store and run again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from deltalake import DeltaTable

from tests.lake.old import content, old_lake

ROOT = Path(__file__).parents[2]
_LAST = '            Column("added_at", TIME, "When the video was ingested."),\n'
_ADDED = '            Column("license", STRING, "License of the video.", since=3),\n'
# Of 21 changes: the new column in the first table and in the last, and what is between them.
SOME = (("kill-before", 1), ("kill-after", 1), ("kill-before", 5), ("kill-after", 12))


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code, with one more column in `videos`."""
    tree = tmp_path_factory.mktemp("newer")
    for package in ROOT.glob("*/__init__.py"):
        if package.parent.name != "lake":
            (tree / package.parent.name).symlink_to(package.parent)
    shutil.copytree(ROOT / "lake", tree / "lake", ignore=shutil.ignore_patterns("__pycache__"))
    spec = tree / "lake" / "schemas.py"
    before = spec.read_text()
    assert before.count(_LAST) == 1
    spec.write_text(before.replace(_LAST, _LAST + _ADDED))
    return tree


def upgrade(tree: Path, uri: str, when: str = "plain", number: int = 0) -> tuple[int, str]:
    words = ("maintain", "--upgrade", "--lake", uri)
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.stepped", when, str(number), *words],
        cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def check(tree: Path, folder: Path, when: str, number: int) -> None:
    lake = old_lake(folder)
    before = content(lake)
    code, said = upgrade(tree, lake.uri, when, number)
    assert code == -signal.SIGKILL, said
    code, said = upgrade(tree, lake.uri)
    assert code == 0, said
    code, said = upgrade(tree, lake.uri)
    assert (code, "nothing to upgrade" in said) == (0, True), said
    # Plain Delta: this process has the older code, which refuses the lake now.
    found = {name: lake_rows(lake.table_uri(name)) for name in ("videos", "triples", "reviews")}
    assert {row.pop("license") for row in found["videos"]} == {None}
    assert found == {name: before[name] for name in found}


def lake_rows(uri: str) -> list[dict[str, object]]:
    return sorted(DeltaTable(uri).to_pyarrow_dataset().to_table().to_pylist(), key=repr)


@pytest.mark.slow
@pytest.mark.parametrize(("when", "number"), SOME)
def test_an_upgrade_that_was_killed_is_completed_by_the_next(
    newer: Path, tmp_path: Path, when: str, number: int
) -> None:
    check(newer, tmp_path, when, number)


@pytest.mark.long
def test_an_upgrade_that_was_killed_at_any_change_is_completed_by_the_next(newer: Path, tmp_path: Path) -> None:
    _, said = upgrade(newer, old_lake(tmp_path / "count").uri, "count")
    changes = int(said.rsplit("changes: ", 1)[1])
    assert changes > len(SOME)
    for number in range(1, changes + 1):
        for when in ("kill-before", "kill-after"):
            check(newer, tmp_path / f"{when}-{number}", when, number)
