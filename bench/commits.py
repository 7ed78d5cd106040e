"""Cost of a commit, of this state of the code and of another, on a folder and in S3 (SeaweedFS), in turn.

    git worktree add /tmp/before COMMIT
    python -m bench.commits --before /tmp/before --out bench/results/commits.json

Each measurement is a process of its own, and the states take turns, so that what else the machine does slows all alike.
`unflushed` is this state with WORLDLAKE_FSYNC=off.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parents[1]
COMMITS, ROWS, IMAGE_BYTES = 20, 64, 10_000


def measure(uri: str) -> dict[str, float]:
    """Median milliseconds of each kind of commit to a fresh lake; runs in the state of the code that is measured."""
    from lake.commits import Committer
    from lake.runs import Run
    from lake.tables import Lake, now, to_table

    lake = Lake(uri)
    lake.create()
    # A commit took its files by table until appends went through `lake.writer`, too.
    is_older = hasattr(lake, "append")
    committer = Committer(lake, "labeler", "run")
    committer.fence()

    def label(number: int) -> None:
        stamp = {"video_id": f"v{number}", "uri": f"/v{number}", "labeler_id": "labeler", "labeled_at": now()}
        images = {"obs": os.urandom(IMAGE_BYTES), "next_obs": os.urandom(IMAGE_BYTES)}
        rows = [{**stamp, "triple_id": f"{number}-{row}", **images} for row in range(ROWS)]
        done = [{"video_id": f"v{number}", "labeler_id": "labeler", "sampled": ROWS, "finished_at": now()}]
        files = [
            lake.write_file(to_table(name, content), name, "run")
            for name, content in (("triples", rows), ("progress", done))
        ]
        committer.commit({file.table: [file] for file in files} if is_older else files)  # type: ignore[arg-type]

    def record(number: int) -> None:
        with Run(lake, f"run-{number}", "bench", {}):
            pass

    return {"label": _timed(label), "record of a run": _timed(record)}


def _timed(call: Callable[[int], None]) -> float:
    times = []
    for number in range(COMMITS):
        begun = time.perf_counter()
        call(number)
        times.append(1000 * (time.perf_counter() - begun))
    return median(times)


def _child(code: Path, uri: str, **environment: str) -> dict[str, float]:
    # The measuring is this file's, whatever state of the code it measures; -P keeps this folder off its path.
    command = [sys.executable, "-P", __file__, "--measure", uri]
    env = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1", **environment}
    out = subprocess.run(command, cwd=code, env=env, capture_output=True, text=True, check=True).stdout
    found: dict[str, float] = json.loads(out)
    return found


def _labeled(code: Path, videos: Path, uri: str) -> dict[str, float]:
    """Milliseconds that a whole labeling run takes, for each pair that it decides, without the start of Ray."""
    program = "from worldlake.cli import main; main()"
    command = [sys.executable, "-P", "-c", program, "label", str(videos), "--lake", uri, "--json"]
    env = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    out = subprocess.run(command, cwd=code, env=env, capture_output=True, text=True, check=True).stdout
    done = json.loads(out[out.index("{") :])
    pairs = done["counts"]["accepted"] + done["counts"]["rejected"]
    return {f"labeling, for each of {pairs} pairs": 1000 * done["seconds"] / pairs}


def main() -> None:
    """Print milliseconds (medians of rounds) and how many times as long they are as before."""
    from bench.labeling import FIRST_SEED
    from sample_world.clips import write_folder
    from tests.seaweed import Seaweed

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="folder of another state of the code")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=24, help="of the sample world, to label (default: 24)")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    states: dict[str, tuple[Path, dict[str, str]]] = {
        "before": (options.before, {}), "now": (HERE, {}), "unflushed": (HERE, {"WORLDLAKE_FSYNC": "off"}),
    }  # fmt: skip
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory(dir=options.out.parent if options.out else None) as folder:
        videos = Path(folder) / "videos"
        write_folder(videos, range(FIRST_SEED, FIRST_SEED + options.clips))
        server = Seaweed(Path(folder) / "seaweed")
        server.start()
        server.client().create_bucket(Bucket="lakes")
        try:
            for round_ in range(options.rounds):
                for store, root, environment in (("folder", folder, {}), ("S3", "s3://lakes", server.environment)):
                    for state, (code, switches) in states.items():
                        uri = f"{root}/{state}-{round_}"
                        measured = _child(code, uri, **environment, **switches)
                        if store == "folder" and not switches:
                            measured |= _labeled(code, videos, f"{uri}-labeled")
                        found.setdefault(store, {}).setdefault(state, []).append(measured)
        finally:
            server.stop()
    result = _summary(found)
    print(json.dumps(result, indent=2))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def _summary(found: dict[str, dict[str, list[dict[str, float]]]]) -> dict[str, Any]:
    rows = []
    for store, states in found.items():
        for kind in states["now"][0]:
            ms = {state: median(one[kind] for one in rounds) for state, rounds in states.items() if kind in rounds[0]}
            ratio = median(
                now[kind] / before[kind] for now, before in zip(states["now"], states["before"], strict=True)
            )
            rows.append(
                {"store": store, "kind": kind, "ms": {k: round(v, 1) for k, v in ms.items()}, "ratio": round(ratio, 2)}
            )
    return {
        "command": " ".join(["python -m bench.commits", *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "rows": rows,
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2])))
    else:
        main()
