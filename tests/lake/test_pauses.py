"""Upkeep that stands still between what it read and what it changes, while others continue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from deltalake.table import TableOptimizer

from lake import durable, forget, maintenance, tombstones
from lake.commits import Committer
from lake.errors import Fenced, Refused
from lake.log import Log, commit_path
from lake.maintenance import maintain
from lake.repair import check, repair
from lake.storage import StorageConfig, join
from lake.tables import Lake, now, to_table
from lake.writer import Writer
from tests.lake.pauses import Paused
from tests.lake.traces import traces

LABELER = "aaaaaaaa00000001"
SECRET, OTHER = "/cam/secret.mp4", "/cam/other.mp4"

pytestmark = pytest.mark.slow


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    made = Lake(str(tmp_path / "lake"))
    made.create()
    return made


def video(uri: str) -> dict[str, Any]:
    return {"video_id": f"id of {uri}", "uri": uri, "dataset": "d", "added_at": now()}


def triple(uri: str, id_: str = "t") -> dict[str, Any]:
    of_video = {"video_id": f"id of {uri}", "uri": uri, "labeler_id": LABELER}
    return of_video | {"triple_id": id_, "obs": f"pixels of {uri}".encode(), "labeled_at": now()}


@pytest.mark.parametrize("stands_at", ["raise_fences", "delete_files"])
@pytest.mark.parametrize("is_before", [True, False])
def test_a_maintain_deletes_nothing_that_is_committed_meanwhile(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, is_before: bool, stands_at: str
) -> None:
    """Once it went by tombstones that it had read before the video was brought back and labeled again."""
    Writer(lake).append("videos", [video(SECRET), video(OTHER)])
    forget.forget(lake, SECRET)
    # What a worker had written when the forget came by: there is something to delete.
    lake.write_file(to_table("triples", [triple(SECRET, "left")]), "triples", "run")
    paused = Paused(monkeypatch, forget, stands_at, lambda: maintain(lake))
    opened = Writer(lake)
    tombstones.bring_back(opened, [SECRET])
    opened.append("videos", [video(SECRET)])
    committer = Committer(lake, LABELER, "run")
    committer.fence()
    file = lake.write_file(to_table("triples", [triple(SECRET)]), "triples", "run")
    if is_before:
        committer.commit([file])
    assert paused.resume() is None
    if not is_before and stands_at == "raise_fences":
        with pytest.raises(Fenced):
            committer.commit([file])
    elif not is_before:
        committer.commit([file])
    rows = lake.dataset("triples").to_table().to_pylist()
    assert [row["triple_id"] for row in rows] == ["t"] * (is_before or stands_at == "delete_files")
    assert check(lake) == []


@pytest.mark.parametrize("table", ["videos", "runs"])
def test_of_two_repairs_the_later_deletes_nothing(lake: Lake, monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    """Once it deleted the commit that others had made where a broken one had been."""
    Writer(lake).append("videos", [video(OTHER)])
    broken = join(lake.table_uri(table), commit_path(lake.table(table).version() + 1))
    Path(broken).write_bytes(b"")
    paused = Paused(monkeypatch, StorageConfig, "replace", lambda: repair(lake, take_over=True))
    repair(lake, take_over=True)
    for number in range(3):
        Writer(lake).append("videos", [video(f"/{number}.mp4")])
    assert paused.resume() is None
    assert lake.dataset("videos").count_rows() == 4
    assert check(lake) == []


def test_a_repair_that_stands_still_keeps_other_repairs_out(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(lake.table_uri("videos"), commit_path(lake.table("videos").version() + 1)).write_bytes(b"")
    paused = Paused(monkeypatch, durable, "write", lambda: repair(lake, take_over=True))
    with pytest.raises(Refused, match="another repair"):
        repair(lake, take_over=True)
    assert paused.resume() is None
    assert check(lake) == []


def test_a_repair_brings_nothing_back_that_was_forgotten_meanwhile(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it took its fences when it had read the rows already."""
    Writer(lake).append("videos", [video(SECRET), video(OTHER)])
    for _ in range(2):
        Writer(lake).append("triples", [triple(SECRET)])
    paused = Paused(
        monkeypatch, Writer, "write", lambda: repair(lake, take_over=True), lambda *args, **_: args[1] == "triples"
    )
    forget.forget(lake, SECRET, take_over=True)
    assert isinstance(paused.resume(), Fenced)
    assert traces(lake, {SECRET}) == []
    assert check(lake) == []


@pytest.mark.parametrize("cluster", [True, False])
@pytest.mark.parametrize("beside", [True, False])
def test_of_two_compactions_one_counts(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, cluster: bool, beside: bool
) -> None:
    """delta-rs lets both through, and every row is there twice."""
    for id_ in "abc":
        Writer(lake).append("triples", [triple(OTHER, id_)])
    # The first is taken for dead.
    monkeypatch.setattr("lake.runs.find_alive", lambda *_: None)
    name = "z_order" if cluster else "compact"
    # After the reading of the table: the call resumes with an old handle.
    paused = Paused(
        monkeypatch, TableOptimizer, name, lambda: maintain(lake, cluster=cluster), lambda table, *_, **__: is_of(table)
    )
    maintain(lake, cluster=beside)
    assert paused.resume() is None
    assert sorted(lake.dataset("triples").to_table()["triple_id"].to_pylist()) == ["a", "b", "c"]


def is_of(optimizer: TableOptimizer) -> bool:
    return optimizer.table.table_uri.rstrip("/").endswith("triples")


def test_a_maintain_does_not_delete_what_a_repair_brings_back(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    for id_ in "abc":
        Writer(lake).append("triples", [triple(OTHER, id_)])
    maintain(lake)
    [compacted] = Log(lake, "triples").newest
    monkeypatch.setattr(Log, "removed_at", lambda self, path: now() - maintenance.timedelta(days=2))
    paused = Paused(monkeypatch, maintenance, "delete_files", lambda: maintain(lake))
    Path(lake.table_uri("triples"), compacted).unlink()
    repair(lake, take_over=True)
    paused.resume()
    ids = lake.dataset("triples").to_table()["triple_id"].to_pylist()
    assert sorted(ids) == ["a", "b", "c"]


def test_what_cleans_a_log_leaves_no_name_in_it_that_was_forgotten_meanwhile(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Writer(lake)
    uris = (SECRET, OTHER, "/cam/third.mp4")
    files = [lake.write_file(to_table("videos", [video(uri)]), "videos", "one") for uri in uris]
    opened.commit("videos", files)
    paused = Paused(
        monkeypatch,
        StorageConfig,
        "put",
        lambda: forget.forget(lake, OTHER, take_over=True),
        lambda storage, uri, content: "/videos/_delta_log/" in uri and SECRET.encode() in content,
    )
    forget.forget(lake, SECRET, take_over=True)
    assert traces(lake, {SECRET}) == []
    assert paused.resume() is None
    assert traces(lake, {SECRET, OTHER}) == []


def test_a_commit_is_on_the_disk_with_all_before_it(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once only those were flushed that came after the version which a writer had opened."""
    monkeypatch.setenv("WORLDLAKE_FSYNC", "on")
    flushed: list[str] = []
    real = durable.flush
    monkeypatch.setattr(durable, "flush", lambda path: (flushed.append(path.name), real(path)))
    monkeypatch.setattr("lake.tables._FLUSHED", {})
    with monkeypatch.context() as killed:
        # A process that is killed between its commit and the flush.
        killed.setattr(Lake, "flush", lambda self, name: None)
        Writer(lake).append("videos", [video(SECRET)])
    unflushed = Path(commit_path(lake.table("videos").version())).name
    assert unflushed not in flushed
    Writer(lake).append("videos", [video(OTHER)])
    newest = Path(commit_path(lake.table("videos").version())).name
    assert flushed.index(unflushed) < flushed.index(newest)
    count = len(flushed)
    Writer(lake).append("videos", [video("/cam/third.mp4")])
    assert len([name for name in flushed[count:] if name.endswith(".json")]) == 1
