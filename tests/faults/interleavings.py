"""Commands beside each other on one lake, in an order drawn from a seed, with everything that can come between.

Every command runs in a thread of its own and stops at each change that it makes to the store, also between the change
and its answer. One thread moves at a time; which one, and what becomes of the change, is drawn: it happens, it gets
lost, its answer gets lost, it arrives late, the process is killed there, or others move on for a long time, as while it
is paused. Every process has a clock of its own, days off from the others, and takes every other for dead: what keeps
the lake whole must not go by either.

Usage: python -m tests.faults.interleavings LAKE-FOLDER SEED [SEED...]
"""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

from deltalake.exceptions import CommitFailedError, DeltaError

from labeling.pending import list_work
from lake import catalog, commits, maintenance, repair, retry, runs, tables, tombstones, writer
from lake.commits import Committer
from lake.errors import Refused, Superseded
from lake.forget import forget
from lake.ids import triple_id
from lake.schemas import DECISIONS, TABLES
from lake.tables import Lake, to_table
from lake.video_headers import Header
from lake.writer import Writer
from tests.faults.changes import CHANGES
from tests.lake.traces import traces

LABELERS = ("aaaaaaaa00000001", "bbbbbbbb00000002")
PAIRS = 3
# What a command may end with when others were there: it says so, and the user runs it again.
EXPECTED = (Refused, Superseded, OSError, DeltaError, CommitFailedError)
# Of a hundred changes to the store, how many end how.
FATES = {"happen": 88, "lose": 3, "lose the answer": 3, "late": 2, "kill": 2, "kill after": 2}
_NOW = tables.now


class Killed(BaseException):
    """The process is no more: nothing catches this, and nothing that it does from here on reaches the store."""


class Process(threading.Thread):
    """A command on its way; it moves when `move` is called, and returns from there at its next change to the store."""

    def __init__(self, name: str, command: Callable[[], None], clock: timedelta) -> None:
        super().__init__(name=name, daemon=True)
        self.command, self.clock = command, clock
        self.error: BaseException | None = None
        self.is_killed = False
        self._may_move, self._has_stopped = threading.Semaphore(0), threading.Semaphore(0)

    def run(self) -> None:
        self._may_move.acquire()
        try:
            self.command()
        except (Killed, *EXPECTED) as error:
            self.error = error
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.ended = True
            self._has_stopped.release()

    ended = False

    def move(self) -> None:
        self._may_move.release()
        self._has_stopped.acquire()

    def stop_here(self) -> None:
        self._has_stopped.release()
        self._may_move.acquire()
        if self.is_killed:
            raise Killed


@dataclass
class World:
    """A lake, the commands on it, and what they were promised."""

    lake: Lake
    source: Path
    draw: random.Random
    late: list[Callable[[], Any]] = field(default_factory=list)
    cataloged: set[str] = field(default_factory=set)
    """Uris that an `ingest` has acknowledged."""
    decided: dict[str, str] = field(default_factory=dict)
    """Uris by the triples that a run has committed."""
    begun: set[str] = field(default_factory=set)
    """Uris that some `forget` was asked to delete, whatever became of it."""
    forgotten: set[str] = field(default_factory=set)
    """Uris of which a `forget` has said that it deleted them."""
    brought_back: set[str] = field(default_factory=set)

    @property
    def uris(self) -> list[str]:
        return sorted(map(str, self.source.iterdir()))

    def ingest(self, bring_back: bool = False) -> None:
        if bring_back:
            self.brought_back |= set(self.uris)
        counts = catalog.ingest(self.lake, [str(self.source)], dataset="d", bring_back=bring_back)
        if not counts.forgotten:
            self.cataloged |= set(self.uris)

    def label(self, labeler: str) -> None:
        committer = Committer(self.lake, labeler, runs.new_run_id())
        with runs.Run(self.lake, committer.run_id, "label", {}, labeler_id=labeler):
            committer.fence()
            work = list_work(self.lake, labeler, where=None, limit=None, retry_failed=False).to_pylist()
            before = committer.decided([row["video_id"] for row in work])
            for row in work:
                self._label(committer, row, set(before.get(row["video_id"], ())))

    def _label(self, committer: Committer, video: dict[str, Any], before: set[str]) -> None:
        lake, labeler = self.lake, committer.labeler_id
        ids = [triple_id(video["video_id"], pts, pts + 1, labeler) for pts in range(PAIRS)]
        stamp = {"labeler_id": labeler, "video_id": video["video_id"], "run_id": committer.run_id}
        files = []
        for number, id_ in enumerate(ids):
            name = DECISIONS[number % 2]
            row = {**stamp, "uri": video["uri"], "triple_id": id_, "labeled_at": tables.now()}
            if name == "triples":
                row |= {"obs": f"pixels of {video['uri']}".encode()}
            if id_ not in before:
                files.append(lake.write_file(to_table(name, [row]), name, committer.run_id))
        end = {**stamp, "sampled": PAIRS, "decided_before": len(before), "finished_at": tables.now()}
        files.append(lake.write_file(to_table("progress", [end]), "progress", committer.run_id))
        committer.commit(files)
        self.decided |= dict.fromkeys(ids, video["uri"])

    def tokenize(self) -> None:
        opened = Writer(self.lake)
        for row in self.lake.read("triples", ["triple_id", "video_id", "uri"]).to_pylist():
            token = {"triple_id": row["triple_id"], "video_id": row["video_id"], "obs_codes": row["uri"].encode()}
            opened.append("tokens", [token])

    def forget(self, uri: str) -> None:
        self.begun.add(uri)
        forget(self.lake, uri)
        self.forgotten.add(uri)

    def commands(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Commands to run beside each other."""
        draw = self.draw
        for number in range(draw.randint(2, 4)):
            kind = draw.choice(_KINDS)
            uri, labeler = draw.choice(self.uris), draw.choice(LABELERS)
            command: Callable[[], Any] = {
                "ingest": self.ingest,
                "back": lambda: self.ingest(bring_back=True),
                "label": lambda labeler=labeler: self.label(labeler),
                "forget": lambda uri=uri: self.forget(uri),
                "maintain": lambda: maintenance.maintain(self.lake, cluster=draw.random() < 0.3),
                "tokenize": self.tokenize,
                "repair": lambda: repair.repair(self.lake),
            }[kind]
            yield f"{number} {kind}", command

    def run(self) -> list[Process]:
        """Run commands to their ends in some order; returns them."""
        draw = self.draw
        days = [timedelta(days=draw.choice([0, 0, -2, 2]), seconds=draw.uniform(-90, 90)) for _ in range(6)]
        processes = [Process(name, command, days[i]) for i, (name, command) in enumerate(self.commands())]
        for process in processes:
            process.start()
        paused: dict[Process, int] = {}
        while alive := [process for process in processes if not process.ended]:
            paused = {process: rounds - 1 for process, rounds in paused.items() if rounds > 1}
            ready = [process for process in alive if process not in paused] or alive
            process = draw.choice(ready)
            process.move()
            if draw.random() < 0.05:
                paused[process] = draw.randint(5, 200)
            if self.late and draw.random() < 0.05:
                self._arrive()
        while self.late:
            self._arrive()
        return processes

    def _arrive(self) -> None:
        change = self.late.pop(self.draw.randrange(len(self.late)))
        with suppress(*EXPECTED):
            change()

    def change(self, do: Callable[[], Any]) -> Any:
        """Decide the fate of a change to the store by this thread's process."""
        process = threading.current_thread()
        if not isinstance(process, Process):
            return do()
        process.stop_here()
        [fate] = self.draw.choices(list(FATES), list(FATES.values()))
        if fate in ("kill", "kill after"):
            process.is_killed = True
        if fate == "kill":
            raise Killed
        if fate == "lose":
            raise OSError("connection reset before the request was read")
        if fate == "late":
            self.late.append(do)
            raise OSError("no answer in time")
        result = do()
        process.stop_here()
        if fate == "lose the answer":
            raise OSError("connection reset before the answer was read")
        return result

    def wait(self, seconds: float) -> None:
        """Let others move while a process waits."""
        process = threading.current_thread()
        if isinstance(process, Process):
            process.stop_here()

    def settle(self) -> None:
        """Take what is in doubt between commands of one round for unknown, before the next."""
        self.forgotten -= self.brought_back
        self.cataloged -= self.begun
        self.decided = {id_: uri for id_, uri in self.decided.items() if uri not in self.begun}
        self.begun.clear()
        self.brought_back.clear()

    def verify(self) -> None:
        """Raise AssertionError where a promise was broken."""
        for name in TABLES:
            self.lake.dataset(name).to_table()
        gone = self.forgotten - self.brought_back
        rows = {name: self.lake.dataset(name).to_table(columns=["uri"])["uri"].to_pylist() for name in _WITH_URI}
        for name, uris in rows.items():
            assert gone.isdisjoint(uris), f"{name} has a row of what was forgotten"
        missing = self.cataloged - self.begun - set(rows["videos"])
        assert not missing, f"cataloged and not there: {missing}"
        there = {id_ for name in DECISIONS for id_ in self.lake.read(name, ["triple_id"])["triple_id"].to_pylist()}
        lost = [id_ for id_, uri in self.decided.items() if uri not in self.begun and id_ not in there]
        assert not lost, f"decided and not there: {lost}"
        # What a killed `forget` or a process that was paused meanwhile has left is found and deleted; nothing else is.
        found = repair.check(self.lake)
        damage = [one.text() for one in found if one.kind not in _LEFT_BY_KILLS]
        assert not damage, damage
        if found:
            repair.repair(self.lake)
            assert repair.check(self.lake) == []
        assert traces(self.lake, gone) == []


_KINDS = ("ingest", "label", "label", "forget", "forget", "maintain", "tokenize", "back", "repair")
_WITH_URI = ("videos", "triples", "rejections", "failures")
_LEFT_BY_KILLS = ("forgotten rows or files", "files that no commit names")


@contextmanager
def patched(world: World) -> Iterator[None]:
    """Lead every change of every command through `World.change`, and give every process its clock."""
    with _every(
        *(_wrapped(world, *place) for place in CHANGES),
        *(mock.patch.object(module, "now", _clock) for module in _WITH_CLOCK),
        mock.patch.object(retry.time, "sleep", world.wait),
        mock.patch.object(writer, "COMMITS", retry.Schedule((0.1,) * 8)),
        mock.patch.object(commits, "COMMITS", retry.Schedule((0.1,) * 8)),
        mock.patch.object(runs, "LIVE_FOR", timedelta(0)),
        mock.patch.dict(os.environ, _UNFLUSHED),
        # A process that was killed has no heart.
        mock.patch.object(runs.Run, "_beat"),
        mock.patch.object(catalog, "prober", _prober),
    ):
        yield


_UNFLUSHED = {"WORLDLAKE_FSYNC": "off"}
_WITH_CLOCK = (tables, runs, tombstones, catalog, maintenance, repair)


def _wrapped(world: World, owner: Any, name: str) -> Any:
    real = getattr(owner, name)
    return mock.patch.object(owner, name, lambda *args, **options: world.change(lambda: real(*args, **options)))


def _clock() -> datetime:
    process = threading.current_thread()
    return _NOW() + (process.clock if isinstance(process, Process) else timedelta(0))


@contextmanager
def _every(*contexts: Any) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


class _Headers:
    """Stands for the processes that read the headers of videos, which do not matter here."""

    def probe(self, entries: list[Any]) -> list[Header]:
        return [Header("h264", 64, 48, 10.0, 20, 2.0) for _ in entries]


@contextmanager
def _prober(*args: object) -> Iterator[_Headers]:
    yield _Headers()


def interleave(lake: Lake, source: Path, seed: int, rounds: int = 5) -> list[dict[str, str]]:
    """One lake from its beginning, and rounds of commands beside each other; each has to keep every promise.

    Returns how the commands of every round ended.
    """
    world, ends = World(lake, source, random.Random(seed)), []
    with patched(world):
        lake.create()
        world.ingest()
        world.label(LABELERS[0])
    for _ in range(rounds):
        world.settle()
        with patched(world):
            processes = world.run()
        for process in processes:
            assert process.error is None or isinstance(process.error, (Killed, *EXPECTED)), process.error
        with mock.patch.object(runs, "LIVE_FOR", timedelta(0)), mock.patch.dict(os.environ, _UNFLUSHED):
            world.verify()
        ends.append({process.name: type(process.error).__name__ for process in processes})
    return ends


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    videos = folder / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    for name in "abc":
        (videos / f"{name}.mp4").write_bytes(name.encode())
    for seed in map(int, sys.argv[2:]):
        print(seed, interleave(Lake(str(folder / f"lake-{seed}")), videos, seed))
