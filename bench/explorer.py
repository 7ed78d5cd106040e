"""How long a person waits for the explorer's pages on a lake of 100,000 triples.

    python -m bench.explorer --out bench/results/explorer.json      makes the lake in a temporary folder
    python -m bench.explorer --lake /tmp/big                        makes it there, or takes the one that is there

The lake is written as a labeling run writes it: Parquet files of 500 rows, committed by a `Committer`, with pictures
and actions of the sample world (64 x 64 JPEG, some 2 kB), the same few hundred over and over, and scores drawn at
random. `worldlake serve` answers over it, as a user starts it, and Chromium asks; each figure is the time from the
start of the navigation until the page shows what it is for, for a browser that has nothing in its cache. Of several
visits of a page the first may find the service unprepared; the very first one of all always does.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
from playwright._impl._api_structures import SetCookieParam
from playwright.sync_api import Browser, sync_playwright

from bench.serving.servers import prefer
from lake.commits import Committer
from lake.ids import triple_id, video_id
from lake.runs import Run, new_run_id
from lake.tables import Lake, now, to_table
from lake.writer import Writer
from sample_world.pairs import clip_pairs
from serve.api.overview import counted
from serve.auth import COOKIE
from serve.keys import Keys
from serve.limits import Limits
from serve.queries import Reading

TRIPLES, REJECTIONS = 100_000, 40_000
PAIRS_OF_A_VIDEO = 70
"""50 of them accepted."""
ROWS_OF_A_FILE = 500
LABELER, POLICY = "6f70371c69f4950b", "dd43f367fc4eb960"
DATASETS = ("kitchen", "street", "workshop")
VISITS = 7
PROGRAM = str(Path(sys.executable).parent / "worldlake")

# A page says itself when it shows what it is for.
PAGES = {
    "overview": "/",
    "triples": "/triples",
    "not accepted": "/rejected",
    "videos": "/videos",
    "a video": "/videos/{video}",
    "a run": "/runs/{run}",
}


def make_lake(lake: Lake) -> None:
    """Fill an empty lake; half a minute."""
    lake.create()
    pictures = _pictures()
    rng = np.random.default_rng(0)
    count = TRIPLES // 50
    videos = [(f"s3://footage/{DATASETS[n % 3]}/clip_{n:05}.mp4", DATASETS[n % 3]) for n in range(count)]
    ids = [video_id(uri, "etag") for uri, _ in videos]
    Writer(lake).append(
        "videos",
        [
            {"video_id": id_, "uri": uri, "dataset": dataset, "split": "train", "codec": "h264", "width": 640,
             "height": 360, "fps": 30.0, "frames": 4500, "duration_s": 150.0, "bytes": 9_000_000, "added_at": now()}
            for id_, (uri, dataset) in zip(ids, videos, strict=True)
        ],
    )  # fmt: skip
    run_id = new_run_id()
    with Run(lake, run_id, "label", {"model": "builtin"}, labeler_id=LABELER, policy_id=POLICY) as run:
        committer = Committer(lake, LABELER, run_id)
        committer.fence()
        rows = (_row(rng, ids[n], *videos[n], pair, run_id, next(pictures)) for n in range(count) for pair in range(70))
        for part in iter(lambda: list(itertools.islice(rows, ROWS_OF_A_FILE)), []):
            _commit(committer, part)
        Writer(lake).append(
            "failures", [_failure(rng, id_, uri, run_id) for id_, (uri, _) in list(zip(ids, videos, strict=True))[::50]]
        )
        run.counts.update(accepted=TRIPLES, rejected=REJECTIONS, failed=count // 50)


def _pictures() -> Iterator[tuple[str, bytes, bytes]]:
    made = []
    for seed in range(20):
        clip = clip_pairs(seed)
        jpegs = [cv2.imencode(".jpg", frame[:, :, ::-1])[1].tobytes() for frame in clip.frames]
        made += [(action, jpegs[a], jpegs[b]) for (a, b), action in zip(clip.index, clip.actions, strict=True)]
    return itertools.cycle(made)


def _row(
    rng: np.random.Generator,
    video: str,
    uri: str,
    dataset: str,
    pair: int,
    run_id: str,
    picture: tuple[str, bytes, bytes],
) -> dict[str, Any]:
    action, obs, next_obs = picture
    row = {"triple_id": triple_id(video, 60 * pair, 60 * pair + 30, LABELER), "run_id": run_id, "labeler_id": LABELER,
           "policy_id": POLICY, "video_id": video, "uri": uri, "dataset": dataset, "split": "train",
           "obs_pts": 60 * pair, "next_pts": 60 * pair + 30, "time_base": "1/30", "obs_time_s": 2.0 * pair,
           "next_time_s": 2.0 * pair + 1, "action": action, "camera_motion": 0.0, "text": 1.0,
           "motion": float(rng.gamma(2, 0.02)), "labeled_at": now()}  # fmt: skip
    if pair % 7 < 5:
        row |= {"confidence": -float(rng.exponential(0.01)), "direction": float(rng.normal(4, 1)),
                "copy": float(rng.normal(4, 1.5)), "obs": obs, "next_obs": next_obs}  # fmt: skip
    else:
        scores = {"confidence": -float(rng.exponential(0.5)), "direction": float(rng.normal(0, 1)),
                  "copy": float(rng.normal(1, 1))}  # fmt: skip
        row |= scores | {"reasons": [name for name in scores if scores[name] < 0.5] or ["motion"]}
    return row


def _failure(rng: np.random.Generator, video: str, uri: str, run_id: str) -> dict[str, Any]:
    return {"video_id": video, "uri": uri, "labeler_id": LABELER, "run_id": run_id, "scope": "span", "stage": "decode",
            "start_pts": int(rng.integers(4000)), "end_pts": 4200, "error_type": "DecodeError",
            "message": "the packet at 3.2 s is damaged", "transient": False, "attempt": 1, "decoder": "pyav",
            "failed_at": now()}  # fmt: skip


def _commit(committer: Committer, rows: list[dict[str, Any]]) -> None:
    parts = {"triples": [row for row in rows if "obs" in row], "rejections": [row for row in rows if "obs" not in row]}
    done: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["obs_pts"] == 60 * (PAIRS_OF_A_VIDEO - 1):
            done[row["video_id"]] = {"video_id": row["video_id"], "labeler_id": LABELER, "run_id": row["run_id"],
                                     "sampled": 70, "accepted": 50, "rejected": 20, "failed": 0, "decided_before": 0,
                                     "finished_at": now()}  # fmt: skip
    parts["progress"] = list(done.values())
    committer.commit(
        committer.lake.write_file(to_table(name, content), name, committer.run_id) for name, content in parts.items()
    )


_KEY = "bench"


@contextmanager
def serving(lake: Lake, world: str = "none", priority: int = 0) -> Iterator[tuple[str, list[SetCookieParam]]]:
    """`worldlake serve` over a lake: where it answers, and the cookie of a browser that has signed in there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [PROGRAM, "serve", "--lake", lake.uri, "--port", str(port), "--world", world]
    keys = Keys(lake)
    if any(key.name == _KEY for key in keys.read()):
        # Of a run that was killed.
        keys.revoke(_KEY)
    _, token = keys.create(_KEY, ("admin",), per_minute=1_000_000)
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True)
    if priority:
        prefer(process.pid, priority)
    url = f"http://127.0.0.1:{port}"
    try:
        while not _is_ready(url):
            if process.poll() is not None:
                raise SystemExit(f"worldlake serve ended with {process.returncode}")
            time.sleep(0.5)
        yield url, [{"name": COOKIE, "value": token, "url": url}]
    finally:
        process.terminate()
        process.wait(60)
        keys.revoke(_KEY)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=30).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser."""
    with sync_playwright() as playwright:
        args = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=args)
        yield browser
        browser.close()


def visits(browser: Browser, url: str, cookies: list[SetCookieParam], path: str) -> list[float]:
    """Seconds of several visits of a page, each by a browser that has been nowhere."""
    taken = []
    for _ in range(VISITS):
        with browser.new_context(base_url=url) as context:
            context.add_cookies(cookies)
            page = context.new_page()
            started = time.perf_counter()
            page.goto(path, wait_until="commit")
            page.wait_for_selector("[data-ready]")
            taken.append(time.perf_counter() - started)
    return taken


def read_for_an_overview(lake: Lake) -> dict[str, float]:
    """Megabytes that the first overview of a fresh process reads, and that there are to read."""
    reading = Reading(lake, Limits())
    before = _read_so_far()
    asyncio.run(counted(reading, None))
    read = _read_so_far() - before
    files = [file.metadata for file in lake.dataset("triples").get_fragments()]
    groups = [file.row_group(group) for file in files for group in range(file.num_row_groups)]
    columns = [group.column(place) for group in groups for place in range(group.num_columns)]
    images = sum(one.total_compressed_size for one in columns if one.path_in_schema in ("obs", "next_obs"))
    return {"read_mb": round(read / 1e6, 1), "images_mb": round(images / 1e6, 1), "files": len(files)}


def _read_so_far() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def measure(lake: Lake, priority: int) -> dict[str, Any]:
    """All figures."""
    ids = {
        "video": lake.read("videos", ["video_id"])["video_id"][0].as_py(),
        "run": lake.read("runs", ["run_id"])["run_id"][0].as_py(),
    }
    counts = {name: lake.dataset(name).count_rows() for name in ("videos", "triples", "rejections")}
    pages: dict[str, dict[str, float]] = {}
    with serving(lake, priority=priority) as (url, cookies), chromium() as browser:
        for name, path in PAGES.items():
            taken = visits(browser, url, cookies, path.format(**ids))
            pages[name] = {"first_s": taken[0], "median_s": statistics.median(taken[1:]), "worst_s": max(taken[1:])}
            pages[name] = {key: round(value, 2) for key, value in pages[name].items()}
            print(name, pages[name])
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    load = round(os.getloadavg()[0], 1)
    return {
        "machine": machine,
        "load": load,
        "priority": priority,
        "lake": counts,
        "overview": read_for_an_overview(lake),
        "pages": pages,
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--priority", type=int, default=0, help="before others on a machine that is shared: down to -20"
    )
    chosen = parser.parse_args()
    if chosen.priority:
        prefer(os.getsid(0), chosen.priority)
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(str(chosen.lake or Path(folder) / "lake"))
        if not (chosen.lake and (chosen.lake / "triples").exists()):
            make_lake(lake)
        figures = measure(lake, chosen.priority)
    print(json.dumps(figures, indent=1))
    if chosen.out:
        chosen.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
