"""Commands that are killed at every change they make to the store, or paused there while another runs to its end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pyarrow.parquet as pq
import pytest

from lake.log import commit_path
from lake.tables import Lake
from tests.faults.lakes import Command, Videos, changes, copied, run, template, verify
from tests.faults.stepped import LIVE_FOR

COMMANDS = ("ingest", "forget", "maintain", "repair")
FRACTIONS = (0.0, 0.5, 0.99)
"""Of the changes of a command: the points of the quick tests."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, Videos]:
    return template(tmp_path_factory.mktemp("template"))


class Scene:
    """A lake to copy, the videos beside it, and commands on them by name."""

    def __init__(self, made: tuple[Lake, Videos], folder: Path) -> None:
        self.lake, self.videos = made
        self.folder = folder
        self.words = {
            "ingest": ("ingest", str(self.videos.folder), "--dataset", "d"),
            "forget": ("forget", self.videos.back),
            "forget another": ("forget", self.videos.other),
            "forget a failure": ("forget", self.videos.broken),
            "maintain": ("maintain", "--cluster"),
            "repair": ("repair",),
        }
        self.gone = {"forget": self.videos.back, "forget another": self.videos.other}
        self.gone["forget a failure"] = self.videos.broken
        self._counts: dict[str, int] = {}

    def new(self, command: str) -> Lake:
        """A fresh copy, damaged where a command is to repair it."""
        lake = copied(self.lake, self.folder / uuid4().hex)
        if command == "repair":
            damage(lake)
        return lake

    def points(self, command: str) -> list[int]:
        """The numbers of all changes that a command makes when nothing disturbs it."""
        if command not in self._counts:
            self._counts[command] = changes(self.new(command), *self.words[command])
        assert self._counts[command] > 3
        return list(range(1, self._counts[command] + 1))

    def some(self, command: str) -> list[int]:
        """A few of the points."""
        every = self.points(command)
        return sorted({every[int(fraction * len(every))] for fraction in FRACTIONS})

    def verify(self, lake: Lake, commands: Iterable[str], *, ingested: bool = False) -> None:
        """Check what the commands promised, of which some were `forget`."""
        gone = {self.gone[command] for command in commands if command in self.gone}
        known = {self.videos.other, self.videos.back, self.videos.broken}
        if ingested:
            known |= {self.videos.new, self.videos.bad}
        if "repair" in commands:
            known.discard(self.videos.other)
        verify(lake, gone, known - gone)
        shutil.rmtree(lake.uri)


@pytest.fixture
def scene(made: tuple[Lake, Videos], tmp_path: Path) -> Scene:
    return Scene(made, tmp_path)


def damage(lake: Lake) -> None:
    """Take away a file that a table names, leave a commit half-written, and a table out."""
    for path in map(Path, lake.table("triples").file_uris()):
        if pq.read_table(path, columns=["uri"])["uri"].to_pylist()[0].endswith("other.mp4"):
            path.unlink()
    version = lake.table("tokens").version()
    Path(lake.table_uri("tokens"), commit_path(version + 1)).write_bytes(b'{"add": {"pa')
    shutil.rmtree(lake.table_uri("reviews"))


def each(points: list[int], check: Callable[[int], None]) -> None:
    """Check every point, as many at once as there are cores; names those where it failed."""
    failed = {}

    def one(point: int) -> None:
        try:
            check(point)
        except AssertionError as error:
            failed[point] = str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, points))
    assert not failed, "\n".join(f"at change {point}: {why}" for point, why in sorted(failed.items()))


def kill_at(scene: Scene, command: str, when: str) -> Callable[[int], None]:
    """A check: the command, killed around a change, completes when it is run again."""

    def check(point: int) -> None:
        lake, words = scene.new(command), scene.words[command]
        code, said = Command(lake, *words, when=when, number=point).wait()
        assert code == -signal.SIGKILL, said
        run(lake, *words)
        scene.verify(lake, [command], ingested=command == "ingest")

    return check


def pause_at(scene: Scene, command: str, beside: str) -> Callable[[int], None]:
    """A check: the command is paused before a change while another runs to its end, then continued."""

    def check(point: int) -> None:
        lake, words = scene.new(command), scene.words[command]
        paused = Command(lake, *words, when="stop-before", number=point)
        try:
            assert paused.wait_until_paused()
            # Until its heart has been silent for long enough.
            time.sleep(LIVE_FOR.total_seconds())
            run(lake, *scene.words[beside])
        finally:
            os.kill(paused.pid, signal.SIGCONT)
        code, said = paused.wait()
        done = [beside, command]
        if code:
            assert code in (1, 2), f"exit code {code}: {said}"
            assert [line for line in said.splitlines() if line.startswith("worldlake: ")], said
            assert len(said.splitlines()) == 1, said
            done.remove(command)
        gone = {scene.gone[one] for one in done if one in scene.gone}
        verify(lake, gone, set())
        if code:
            run(lake, *words)
        scene.verify(lake, [command, beside], ingested="ingest" in (command, beside))

    return check


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_killed_command_completes_when_run_again(scene: Scene, command: str) -> None:
    each(scene.some(command), kill_at(scene, command, "kill-after"))


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("when", ["kill-before", "kill-after"])
def test_a_command_killed_at_any_change_completes_when_run_again(scene: Scene, command: str, when: str) -> None:
    each(scene.points(command), kill_at(scene, command, when))


@pytest.mark.slow
def test_a_lake_outlives_a_forget_beside_a_paused_ingest(scene: Scene) -> None:
    """Once a `forget` deleted the file that the ingest then committed, and nothing could open the lake again."""
    each(scene.points("ingest")[1:-1], pause_at(scene, "ingest", "forget a failure"))


@pytest.mark.slow
def test_what_is_forgotten_beside_a_paused_ingest_stays_away(scene: Scene) -> None:
    """Once the ingest added it again; and delta-rs writes it into a file before it finds its commit refused."""
    each(scene.points("ingest")[1:-1], pause_at(scene, "ingest", "forget another"))


@pytest.mark.slow
def test_what_is_cataloged_beside_a_paused_forget_is_forgotten_too(scene: Scene) -> None:
    """Once the `forget` deleted only what it had found before it was paused."""
    each(scene.some("forget"), pause_at(scene, "forget", "ingest"))


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("beside", ["forget", "forget another", "ingest", "maintain"])
@pytest.mark.parametrize("command", ["ingest", "forget", "maintain"])
def test_a_command_paused_at_any_change_keeps_every_promise(scene: Scene, command: str, beside: str) -> None:
    each(scene.points(command), pause_at(scene, command, beside))


@pytest.fixture
def faketime() -> str:
    if not (program := shutil.which("faketime")):
        pytest.skip("needs faketime")
    return program


def clock(faketime: str, offset: str) -> tuple[str, ...]:
    """Return a prefix that shifts a command's clock, but not the clock by which it waits."""
    return "env", "FAKETIME_DONT_FAKE_MONOTONIC=1", faketime, "-f", offset


@pytest.mark.slow
def test_a_live_run_whose_clock_is_behind_is_not_taken_for_dead(scene: Scene, faketime: str) -> None:
    refuse_forget_beside(scene, clock(faketime, "-40s"))


@pytest.mark.slow
def test_a_live_run_in_another_pid_namespace_is_not_taken_for_dead(scene: Scene) -> None:
    """Such as one in a container that shares the name of the host, but no process ids."""
    namespace = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    if subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("PID namespaces need root")
    refuse_forget_beside(scene, namespace)


def refuse_forget_beside(scene: Scene, before: tuple[str, ...]) -> None:
    """Check that a `forget` begins beside no ingest that was started so, and that the ingest completes."""
    lake = scene.new("ingest")
    ingest = Command(lake, *scene.words["ingest"], when="wait-before", number=3, before=before)
    ingest.wait_until_waiting()
    code, said = Command(lake, *scene.words["forget"]).wait()
    assert code == 2, said
    assert "is alive on" in said
    code, said = ingest.wait()
    assert code == 0, said
    scene.verify(lake, ["ingest"], ingested=True)


@pytest.mark.slow
def test_a_clock_that_is_days_ahead_deletes_nothing_that_is_committed_later(scene: Scene, faketime: str) -> None:
    """A `maintain` takes every file that no commit names yet for a day old; the ingest that wrote it begins again."""

    def check(point: int) -> None:
        lake = scene.new("ingest")
        ingest = Command(lake, *scene.words["ingest"], when="wait-before", number=point)
        ingest.wait_until_waiting()
        code, said = Command(lake, "maintain", before=clock(faketime, "+2d")).wait()
        assert code == 0, said
        code, said = ingest.wait()
        assert code == 0, said
        scene.verify(lake, ["ingest"], ingested=True)

    each(scene.points("ingest")[1:-1], check)
