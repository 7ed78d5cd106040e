"""A small lake in a folder for commands that are killed or paused, and what every command promises about it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from lake import repair
from lake.catalog import ingest
from lake.commits import Committer
from lake.ids import triple_id
from lake.runs import Run
from lake.schemas import DECISIONS, TABLES
from lake.tables import Lake, now, to_table
from lake.writer import Writer
from sample_world.clips import write_folder
from tests.lake.traces import traces
from worldlake.status import lake_status

LABELER = "aaaaaaaa00000001"
PAIRS = 3
_NUMBERED = (("videos", "video_id"), *((name, "triple_id") for name in DECISIONS))


@dataclass
class Videos:
    """A folder of videos: `back` is again as it was before the newest state that a lake has of it, `other` in a state
    that it does not have, `new` not in it at all; `broken`, which it has, and `bad` are not videos."""

    folder: Path
    back: str = field(init=False)
    other: str = field(init=False)
    new: str = field(init=False)
    broken: str = field(init=False)
    bad: str = field(init=False)

    def __post_init__(self) -> None:
        self.back, self.other, self.new, self.broken, self.bad = (
            str(self.folder / f"{name}.mp4") for name in ("back", "other", "new", "broken", "bad")
        )


def template(folder: Path) -> tuple[Lake, Videos]:
    """A lake with decided pairs, tokens, failures and runs, and videos of which it does not know some yet."""
    videos = Videos(folder / "videos")
    clips = sorted(write_folder(folder / "clips", range(3)))
    videos.folder.mkdir()
    lake = Lake(str(folder / "lake"))
    # Each in a file of its own.
    for clip, path in zip(clips, (videos.back, videos.other), strict=False):
        shutil.copy(clip, path)
        ingest(lake, [path], dataset="d", layout="folder")
    Path(videos.broken).write_bytes(b"no video")
    _decide(lake)
    # Touched, cataloged, and touched back: the next ingest replaces a row.
    before = Path(videos.back).stat()
    os.utime(videos.back)
    ingest(lake, [str(videos.folder)], dataset="d", layout="folder")
    os.utime(videos.back, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.utime(videos.other)
    shutil.copy(clips[2], videos.new)
    Path(videos.bad).write_bytes(b"no video either")
    return lake, videos


def _decide(lake: Lake) -> None:
    with Run(lake, "labeled", "label", {}, labeler_id=LABELER) as run:
        committer = Committer(lake, LABELER, run.run_id)
        committer.fence()
        for video in lake.read("videos", ["video_id", "uri"]).to_pylist():
            stamp = {"labeler_id": LABELER, "video_id": video["video_id"], "run_id": run.run_id}
            rows = [
                {
                    **stamp,
                    "uri": video["uri"],
                    "triple_id": triple_id(video["video_id"], pts, pts + 1, LABELER),
                    "labeled_at": now(),
                }
                for pts in range(2 * PAIRS)
            ]
            accepted = [row | {"obs": f"pixels of {video['uri']}".encode()} for row in rows[:PAIRS]]
            end = {**stamp, "sampled": 2 * PAIRS, "accepted": PAIRS, "rejected": PAIRS, "failed": 0,
                   "decided_before": 0, "finished_at": now()}  # fmt: skip
            parts = {"triples": accepted, "rejections": rows[PAIRS:], "progress": [end]}
            committer.commit(lake.write_file(to_table(name, part), name, run.run_id) for name, part in parts.items())
            token = {"triple_id": rows[0]["triple_id"], "video_id": video["video_id"], "obs_codes": b"code"}
            Writer(lake).append("tokens", [token])


def copied(lake: Lake, folder: Path) -> Lake:
    """A copy of a lake in a folder that is not there yet."""
    shutil.copytree(lake.uri, folder)
    return Lake(str(folder))


class Command:
    """A `worldlake` command through `tests.faults.stepped`."""

    def __init__(self, lake: Lake, *words: str, when: str = "plain", number: int = 0, before: tuple[str, ...] = ()):
        self.words = words
        self._process = subprocess.Popen(
            [*before, sys.executable, "-m", "tests.faults.stepped", when, str(number), *words, "--lake", lake.uri],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def wait(self, timeout_s: float = 120) -> tuple[int, str]:
        """Its exit code and what it wrote on standard error."""
        _, said = self._process.communicate(timeout=timeout_s)
        return self._process.returncode, said

    def wait_until_waiting(self) -> None:
        """Return when it waits; with `wait` it does what is left."""
        assert self._process.stdout
        assert self._process.stdout.readline() == "waiting\n", self.wait()

    def wait_until_paused(self, timeout_s: float = 60) -> bool:
        """Return whether it has paused itself; False if it ended before."""
        until = time.monotonic() + timeout_s
        while self._process.poll() is None:
            if psutil.Process(self.pid).status() == psutil.STATUS_STOPPED:
                return True
            assert time.monotonic() < until, f"{self.words} neither paused nor ended"
            time.sleep(0.02)
        return False


def run(lake: Lake, *words: str) -> None:
    """Run a command that has to succeed."""
    code, said = Command(lake, *words).wait()
    assert code == 0, f"{words}: {said}"


def changes(lake: Lake, *words: str) -> int:
    """How many changes to the store a command makes; it makes them."""
    code, said = Command(lake, *words, when="count").wait()
    assert code == 0, f"{words}: {said}"
    return int(said.rsplit("changes: ", 1)[1])


def verify(lake: Lake, forgotten: set[str], there: set[str]) -> None:
    """Raise AssertionError where something is damaged, twice, left of what was `forgotten`, or no longer `there`."""
    rows = {name: lake.dataset(name).to_table().to_pylist() for name in TABLES}
    assert [one.text() for one in repair.check(lake)] == []
    assert traces(lake, forgotten) == []
    for name, column in _NUMBERED:
        ids = [row[column] for row in rows[name]]
        assert len(ids) == len(set(ids)), f"{name} holds a row twice"
    uris = {row["uri"] for row in rows["videos"]} | {row["uri"] for row in rows["failures"]}
    assert there <= uris, there - uris
    decided = [row["uri"] for name in DECISIONS for row in rows[name]]
    for uri in there:
        assert decided.count(uri) in (0, 2 * PAIRS), f"{decided.count(uri)} decisions of {uri}"
    assert all(labeler["balances"] for labeler in lake_status(lake)["labelers"])
