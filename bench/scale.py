"""Cost of a lake as it grows: catalogs up to a million videos, ten thousand commits, and many waiting workers.

    python -m bench.scale catalog     listing, anti-join, planning, the driver's memory: 10^4, 10^5, 10^6 videos
    python -m bench.scale commits       10,000 commits to one table, and how long a reader takes to open it
    python -m bench.scale actors        4, 16 and 64 workers that only wait: what the driver spends on each block
    python -m bench.scale memory        what each process of a labeling run takes, by the height of its videos

Listings and headers are made up, as no store here holds a million videos; tables, commits and queries are the real
ones, in a local folder. Each command keeps its figures in bench/results/scale.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import psutil
import pyarrow as pa

from bench.labeling import pss, session
from lake.catalog import ingest
from lake.commits import Committer
from lake.storage import LIST_PAGE, Entry, StorageConfig
from lake.tables import Lake, now, to_table
from lake.video_headers import Header

OUT = Path(__file__).parent / "results" / "scale.json"
SIZES = (10_000, 100_000, 1_000_000)
LABELER = "0" * 16
HEADER = Header("h264", 1280, 720, 30.0, 9000, 300.0)


def catalog(sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Grow one catalog page by page; at each size ask what every command asks."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(f"{folder}/lake", StorageConfig())
        for start, stop in pairwise((0, *sizes)):
            pages = _grow(lake, start, stop)
            finished = stop // 2
            _finish(lake, start // 2, finished)
            found.append(
                {"videos": stop, "ingest_s_per_1000": round(median(pages[-20:]), 3), **_plan(lake, stop - finished)}
            )
            print(json.dumps(found[-1]), flush=True)
    return found


def _grow(lake: Lake, start: int, stop: int) -> list[float]:
    """Ingest the videos [start, stop) by pages of a listing; seconds that each page took."""

    def pages(self: StorageConfig, uri: str) -> Iterator[list[Entry]]:
        for first in range(start, stop, LIST_PAGE):
            yield [
                Entry(f"{uri}/{number:09d}.mp4", 1 << 27, f"e{number:031d}")
                for number in range(first, first + LIST_PAGE)
            ]

    class Headers:
        def probe(self, entries: list[Entry]) -> list[Header]:
            return [HEADER] * len(entries)

    @contextmanager
    def prober(*_: object) -> Iterator[Headers]:
        yield Headers()

    ends = [time.perf_counter()]
    with (
        patch.object(StorageConfig, "pages", pages),
        patch.object(StorageConfig, "check", lambda *_, **__: None),
        patch("lake.catalog.prober", prober),
    ):
        counts = ingest(lake, [f"{lake.uri}/../source"], on_progress=lambda _: ends.append(time.perf_counter()))
    assert counts.new == stop - start, counts
    return [after - before for before, after in pairwise(ends)]


def _finish(lake: Lake, start: int, stop: int) -> None:
    """Half of the catalog is labeled: commits of a thousand videos each."""
    ids = lake.read("videos", ["video_id", "uri"]).sort_by("uri")["video_id"].to_pylist()[start:stop]
    committer = Committer(lake, LABELER, "scale")
    committer.fence()
    for first in range(0, len(ids), 1000):
        rows = [
            {"video_id": id_, "labeler_id": LABELER, "run_id": "scale", "finished_at": now()}
            | dict.fromkeys(("sampled", "accepted", "rejected", "failed", "decided_before"), 0)
            for id_ in ids[first : first + 1000]
        ]
        committer.commit([lake.write_file(to_table("progress", rows), "progress", "scale")])


def _plan(lake: Lake, pending: int) -> dict[str, float]:
    """Plan a labeling run up to its first frame, in a separate process to measure its memory alone."""
    asked = [sys.executable, "-m", "bench.scale", "plan", lake.uri, str(pending)]
    planned: dict[str, float] = json.loads(subprocess.run(asked, check=True, capture_output=True, text=True).stdout)
    return planned


def plan(uri: str, pending: int) -> dict[str, float]:
    """List the pending videos, ask which pairs are decided, read the counts and cut the work into tasks."""
    from labeling.accounting import Accounts
    from labeling.pending import list_work
    from labeling.pipeline import _tasks

    lake, before = Lake(uri), _peak_mb()
    started = time.perf_counter()
    work = list_work(lake, LABELER, where=None, limit=None, retry_failed=False)
    listed = time.perf_counter()
    assert len(work) == pending, (len(work), pending)
    ids = work["video_id"].to_pylist()
    decided = Committer(lake, LABELER, "plan").decided(ids)
    accounts = Accounts()
    for video_id in ids:
        accounts.open(video_id, decided_before=len(decided.get(video_id, ())))
    tasks = _tasks(pa.Table.from_pylist(work.to_pylist(), schema=work.schema), 64)
    return {
        "list_s": round(listed - started, 2),
        "open_books_s": round(time.perf_counter() - listed, 2),
        "tasks": len(tasks),
        "driver_mb": round(_peak_mb() - before),
    }


def commits(count: int) -> list[dict[str, float]]:
    """Commit small files to `progress`, as a run of months does; every now and then open the table as a reader does."""
    found, taken = [], []
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(f"{folder}/lake")
        lake.create()
        committer = Committer(lake, LABELER, "scale")
        committer.fence()
        row = {"labeler_id": LABELER, "run_id": "scale", "finished_at": now()}
        row |= dict.fromkeys(("sampled", "accepted", "rejected", "failed", "decided_before"), 0)
        for number in range(1, count + 1):
            file = lake.write_file(to_table("progress", [row | {"video_id": f"{number:032x}"}]), "progress", "scale")
            started = time.perf_counter()
            committer.commit([file])
            taken.append(time.perf_counter() - started)
            if number in (100, 1000, count):
                found.append({"commits": number, "commit_s": round(median(taken[-100:]), 4), **_open(lake)})
                print(json.dumps(found[-1]), flush=True)
        from lake.maintenance import maintain

        maintain(lake)
        found.append({"commits": count, "after": "worldlake maintain", **_open(lake)})
        print(json.dumps(found[-1]), flush=True)
    return found


def _open(lake: Lake) -> dict[str, float]:
    opened, described, counted = [], [], []
    for _ in range(3):
        started = time.perf_counter()
        table = lake.table("progress")
        opened.append(time.perf_counter() - started)
        dataset = lake.dataset("progress", table)
        described.append(time.perf_counter() - started)
        dataset.count_rows()
        counted.append(time.perf_counter() - started)
    log = Path(lake.table_uri("progress")) / "_delta_log"
    return {
        "open_s": round(median(opened), 3),
        "dataset_s": round(median(described), 3),
        "count_s": round(median(counted), 3),
        "log_files": len(list(log.iterdir())),
    }


class Wait:
    """A stage that only waits, as one that keeps a GPU busy does from the driver's side."""

    def __call__(self, block: pa.Table) -> pa.Table:
        """Hand on the block after a second."""
        time.sleep(1.0)
        return block


def actors(numbers: tuple[int, ...], blocks_each: int) -> list[dict[str, float]]:
    """Blocks through N waiting workers: how far from no overhead at all, and what the driver's process spends."""
    import logging

    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    found = []
    for number in numbers:
        blocks = [pa.table({"row": [i]}) for i in range(number * blocks_each)]
        dataset = ray.data.from_arrow(blocks).map_batches(
            Wait,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=0.01,
            compute=ray.data.ActorPoolStrategy(size=number),
        )
        arrived: list[float] = []
        used = time.process_time()
        for _ in dataset.iter_batches(batch_size=None):
            arrived.append(time.perf_counter())
        # The first round waits for the workers to start.
        steady = arrived[-1] - arrived[number]
        found.append(
            {
                "workers": number,
                "blocks_per_s": round((len(arrived) - 1 - number) / steady, 2),
                "of_the_possible": round((len(arrived) - 1 - number) / steady / number, 3),
                "driver_ms_per_block": round((time.process_time() - used) / len(arrived) * 1000, 1),
            }
        )
        print(json.dumps(found[-1]), flush=True)
    ray.shutdown()
    return found


def memory(heights: tuple[int, ...]) -> list[dict[str, float]]:
    """Peak memory of the processes of each stage, one of each, while a few clips of a height are labeled."""
    found = []
    for height in heights:
        with tempfile.TemporaryDirectory() as folder:
            _film(Path(folder, "videos"), height)
            found.append({"height": height} | _watched(folder))
            print(json.dumps(found[-1]), flush=True)
    return found


def _film(folder: Path, height: int, clips: int = 6, seconds: int = 20) -> None:
    folder.mkdir()
    source = f"testsrc2=size={height * 16 // 9}x{height}:rate=30:duration={seconds}"
    command = [
        "ffmpeg",
        "-loglevel",
        "error",
        "-f",
        "lavfi",
        "-i",
        source,
        "-pix_fmt",
        "yuv420p",
        str(folder / "0.mp4"),
    ]
    subprocess.run(command, check=True)
    for number in range(1, clips):
        os.link(folder / "0.mp4", folder / f"{number}.mp4")


def _watched(folder: str) -> dict[str, float]:
    program = str(Path(sys.executable).with_name("worldlake"))
    command = [program, "label", f"{folder}/videos", "--lake", f"{folder}/lake"]
    peaks: Counter[str] = Counter()
    run = subprocess.Popen(
        [*command, "--decode-workers", "1", "--label-workers", "1"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    while run.poll() is None:
        taken: Counter[str] = Counter()
        for process in session(run.pid):
            taken[_stage(process, run.pid)] += pss(process)
        peaks |= taken
        time.sleep(0.2)
    if run.returncode:
        raise SystemExit(f"labeling failed with exit code {run.returncode}")
    return {f"{stage}_mb": round(size / 1e6) for stage, size in sorted(peaks.items())}


def _stage(process: psutil.Process, driver: int) -> str:
    """Of a process: decode (with the child that holds the decoder), model, write, driver, or ray."""
    try:
        above = process.parent()
        commands = " ".join([*process.cmdline(), *(above.cmdline() if above else ())])
    except psutil.Error:
        return "ray"
    for name, stage in (("(SampleVideos)", "decode"), ("(Annotate)", "model"), ("(Verify)", "write")):
        if name in commands:
            return stage
    return "driver" if process.pid == driver else "ray"


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _keep(name: str, figures: list[dict[str, Any]]) -> None:
    content = json.loads(OUT.read_text()) if OUT.exists() else {}
    content |= {name: figures, "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    OUT.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    commands.add_parser("catalog").add_argument("--sizes", type=int, nargs="+", default=SIZES)
    commands.add_parser("commits").add_argument("--count", type=int, default=10_000)
    waiting = commands.add_parser("actors")
    waiting.add_argument("--workers", type=int, nargs="+", default=(4, 16, 64))
    waiting.add_argument("--blocks-each", type=int, default=20)
    commands.add_parser("memory").add_argument("--heights", type=int, nargs="+", default=(360, 720, 1080, 2160))
    planning = commands.add_parser("plan")
    planning.add_argument("lake")
    planning.add_argument("pending", type=int)
    options = parser.parse_args()
    if options.command == "catalog":
        _keep("catalog", catalog(tuple(options.sizes)))
    elif options.command == "commits":
        _keep("commits", commits(options.count))
    elif options.command == "actors":
        _keep("actors", actors(tuple(options.workers), options.blocks_each))
    elif options.command == "memory":
        _keep("memory", memory(tuple(options.heights)))
    else:
        print(json.dumps(plan(options.lake, options.pending)))


if __name__ == "__main__":
    main()
