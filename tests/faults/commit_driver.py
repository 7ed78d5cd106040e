"""A process that decides a fixed set of pairs in several commits and can be told to die around one of them."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from typing import Any

from deltalake import DeltaTable

from lake.commits import Committer
from lake.tables import Lake, now, to_table

LABELER, VIDEOS, PAIRS = "labeler", 4, 6


def main(uri: str, when: str = "", table: str = "", number: str = "0") -> None:
    """Decide whatever is not decided yet, one commit a video; die `before`, `inside` or `after` a commit of a table."""
    lake = Lake(uri)
    committer = Committer(lake, LABELER, "run")
    committer.fence()
    if when:
        die(when, table, int(number))
    videos = [f"v{video}" for video in range(VIDEOS)]
    finished = set(lake.read("progress", ["video_id"])["video_id"].to_pylist())
    before = committer.decided(video for video in videos if video not in finished)
    for video in videos:
        if video not in finished:
            commit_video(lake, committer, video, set(before.get(video, ())))


def commit_video(lake: Lake, committer: Committer, video: str, before: set[str]) -> None:
    """Half of the pairs accepted, half rejected, one failure, then the end of the video."""
    ids = [id_ for pair in range(PAIRS) if (id_ := f"{video}-{pair}") not in before]
    stamp: dict[str, Any] = {"labeler_id": LABELER, "video_id": video}
    parts = {
        "triples": [{**stamp, "triple_id": id_, "labeled_at": now()} for id_ in ids if int(id_[-1]) % 2],
        "rejections": [{**stamp, "triple_id": id_, "labeled_at": now()} for id_ in ids if not int(id_[-1]) % 2],
        "failures": [{**stamp, "scope": "span", "failed_at": now()}],
        "progress": [{**stamp, "sampled": PAIRS, "decided_before": len(before), "finished_at": now()}],
    }
    committer.commit(lake.write_file(to_table(name, rows), name, "run") for name, rows in parts.items() if rows)


def die(when: str, table: str, number: int) -> None:
    """Kill this process around the `number`-th write to a table from now on."""
    real, seen = DeltaTable.create_write_transaction, [0]

    def deadly(delta: DeltaTable, *args: Any, **options: Any) -> None:
        is_it = delta.table_uri.rstrip("/").endswith(table)
        seen[0] += is_it
        if not is_it or seen[0] != number:
            return real(delta, *args, **options)
        if when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if when == "inside":
            delay = random.uniform(0, 0.02)
            threading.Thread(target=lambda: (time.sleep(delay), os.kill(os.getpid(), signal.SIGKILL))).start()
        real(delta, *args, **options)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    DeltaTable.create_write_transaction = deadly  # type: ignore[method-assign]
