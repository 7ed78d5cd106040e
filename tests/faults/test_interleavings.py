"""Whatever comes between commands, a lake stays readable, whole, and without what was forgotten."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from lake.tables import Lake
from tests.conftest import Bucket
from tests.faults.interleavings import interleave

# Rounds of two to four commands beside each other; five of them on each lake.
FEW, MANY, IN_S3 = 20, 1_600, 400
_ROUNDS = 5
FIRST = int(os.environ.get("WORLDLAKE_SEED", "0"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.mp4").write_bytes(name.encode())
    return folder


def run(lakes: Path | Bucket, source: Path, count: int) -> None:
    ends: Counter[str] = Counter()
    for seed in range(FIRST, FIRST + count // _ROUNDS):
        where = f"{lakes.uri if isinstance(lakes, Bucket) else lakes}/lake-{seed}"
        try:
            done = interleave(Lake(where), source, seed, _ROUNDS)
        except BaseException as error:
            error.add_note(f"seed {seed}, lake {where}")
            raise
        ends.update(f"{name.split(' ')[1]}: {end}" for one in done for name, end in one.items())
        if not isinstance(lakes, Bucket):
            shutil.rmtree(where)
    print(f"{count} interleavings: {dict(sorted(ends.items()))}")


@pytest.mark.slow
def test_a_few_interleavings(tmp_path: Path, source: Path) -> None:
    run(tmp_path, source, FEW)


@pytest.mark.long
@pytest.mark.timeout(3 * 3600)
def test_many_interleavings_in_a_folder(tmp_path: Path, source: Path) -> None:
    run(tmp_path, source, MANY)


@pytest.mark.long
@pytest.mark.timeout(3 * 3600)
def test_many_interleavings_in_s3(bucket: Bucket, source: Path) -> None:
    run(bucket, source, IN_S3)
