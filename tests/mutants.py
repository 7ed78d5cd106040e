"""Mutation tests: small errors are put into the code one at a time, and its tests must notice.

    python -m tests.mutants [FILE ...] [--per-file 20] [--seed 0]     or `make mutants`

cosmic-ray makes the mutants; a sample of them, the same for the same seed, is tested in copies of the repository, one
for each core. What survives is printed as a diff. `tests/test_mutants.py` holds the score above a floor.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec

ROOT = Path(__file__).parents[1]

# The tests that must notice an error in a file. They need no cluster, and take seconds.
TARGETS = {
    "labeling/annotate.py": "tests/labeling/test_annotate.py",
    "labeling/evidence.py": "tests/labeling/test_annotate.py",
    "labeling/policy.py": "tests/labeling/test_policy.py",
    "labeling/verify.py": "tests/labeling/test_policy.py",
    "lake/commits.py": "tests/lake/test_commits.py",
    "lake/forget.py": "tests/lake/test_forget.py",
    "lake/ids.py": "tests/lake/test_ids.py",
    "lake/repair.py": "tests/lake/test_repair.py",
    "lake/schemas.py": "tests/lake/test_tables.py tests/lake/test_statistics.py -k 'not engine'",
    "lake/tables.py": "tests/lake/test_tables.py tests/lake/test_statistics.py -k 'not engine'",
    "lake/writer.py": "tests/lake/test_commits.py",
    "serve/load_shedding.py": "tests/serve/test_load_shedding.py",
    "serve/auth.py": "tests/serve/test_keys.py",
    "serve/keys.py": "tests/serve/test_keys.py",
}
PER_FILE = 20


@dataclass(frozen=True)
class Outcome:
    """Result of one mutant of a file."""

    path: str
    survived: bool
    diff: str


def mutants(path: str, count: int, seed: int) -> list[MutationSpec]:
    """At most `count` mutants of a file, drawn at random; the same arguments give the same ones."""
    with use_db(":memory:", mode=WorkDB.Mode.create) as database:
        init([Path(path)], database, {})
        found = [item.mutations[0] for item in database.work_items]
    annotated = _annotations((ROOT / path).read_text())
    # In an annotation no mutant changes what the code does.
    found = [one for one in found if not any(start <= one.start_pos < end for start, end in annotated)]
    found.sort(key=lambda one: (one.start_pos, one.operator_name, one.occurrence))
    return random.Random(f"{seed} {path}").sample(found, min(count, len(found)))


def _annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where the annotations of a source begin and end, each as (line, column)."""
    spans = []
    for node in ast.walk(ast.parse(source)):
        for name in ("annotation", "returns"):
            if isinstance(one := getattr(node, name, None), ast.expr):
                spans.append(((one.lineno, one.col_offset), (one.end_lineno or 0, one.end_col_offset or 0)))
    return spans


def _enter_copy() -> None:
    """Work in a copy of the repository from now on, which ends with the process that asked for it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    folder = Path(tempfile.mkdtemp(dir=os.environ["MUTANTS_FOLDER"]))
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    os.chdir(folder)
    os.environ |= {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    os.environ.pop("PYTEST_ADDOPTS", None)


def _command(path: str) -> str:
    return f"{shlex.quote(sys.executable)} -m pytest -x -p no:cacheprovider {TARGETS[path]}"


def _seconds(path: str) -> float:
    """How long the tests of a file take. SystemExit where they fail without any mutant."""
    begun = time.monotonic()
    done = subprocess.run(shlex.split(_command(path)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the tests of {path} fail without a mutant:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
    return time.monotonic() - begun


def _test(path: str, mutant: MutationSpec, timeout_s: float) -> Outcome:
    result = mutate_and_test([mutant], _command(path), timeout_s)
    return Outcome(path, not result.is_killed, result.diff or "")


def run(paths: Sequence[str], per_file: int = PER_FILE, seed: int = 0) -> Iterator[Outcome]:
    """Test a sample of mutants of each file, in order. A mutant whose tests hang counts as noticed."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        os.environ["MUTANTS_FOLDER"] = folder
        with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), _enter_copy) as pool:
            seconds = dict(zip(paths, pool.map(_seconds, paths), strict=True))
            jobs = [
                pool.submit(_test, path, mutant, 30 + 4 * seconds[path])
                for path in paths
                for mutant in mutants(path, per_file, seed)
            ]
            try:
                for job in jobs:
                    yield job.result()
            finally:
                pool.shutdown(cancel_futures=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE", choices=[*TARGETS, []], help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--per-file", type=int, default=PER_FILE)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.chdir(ROOT)
    paths = arguments.files or list(TARGETS)
    outcomes = []
    for outcome in run(paths, arguments.per_file, arguments.seed):
        outcomes.append(outcome)
        if outcome.survived:
            print(f"survived\n{outcome.diff}\n", flush=True)
    for path in paths:
        mine = [outcome for outcome in outcomes if outcome.path == path]
        print(f"{path:24} {sum(not outcome.survived for outcome in mine):4} of {len(mine):3} noticed")
    noticed = sum(not outcome.survived for outcome in outcomes)
    print(f"{'all':24} {noticed:4} of {len(outcomes):3} noticed, {noticed / len(outcomes):.1%}")


if __name__ == "__main__":
    main()
