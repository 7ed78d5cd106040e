"""Laws of `forget`: it holds against whatever was open, paused, pinned or left over."""

from __future__ import annotations

import json
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from lake import tombstones
from lake.commits import Committer
from lake.errors import Fenced, Refused
from lake.forget import forget
from lake.log import Log
from lake.maintenance import maintain
from lake.repair import check
from lake.runs import Run, states
from lake.schemas import TABLES
from lake.storage import join
from lake.tables import Lake, now, to_table
from lake.writer import Writer, raise_fences
from tests.lake.filled import LABELERS, Filled, fill
from tests.lake.traces import traces


@pytest.fixture
def filled(place: str) -> Filled:
    return fill(Lake(place))


def pin(lake: Lake, run_id: str) -> None:
    """Record a training with the pins that `training.run` makes."""
    versions = {name: lake.table(name).version() for name in ("triples", "videos", "tokens")}
    # Its sources are selections, unlike those of an ingest.
    with Run(lake, run_id, "train", {"sources": [{"datasets": ["one"], "factor": 1.0}]}, tables_read=versions):
        pass


def identity(lake: Lake, video: str) -> dict[str, Any]:
    [row] = [row for row in lake.dataset("videos").to_table().to_pylist() if row["video_id"] == video]
    return dict(row)


def test_no_byte_is_left_in_any_file_or_version_and_pins_do_not_outrank_it(filled: Filled) -> None:
    lake, video, other = filled.lake, filled.videos[0], filled.videos[1]
    row = identity(lake, video)
    with Run(lake, "ingest", "ingest", {"sources": [row["uri"], "/elsewhere"]}):
        pass
    [mine] = lake.dataset("triples").to_table().filter(pc.field("video_id") == video).slice(0, 1).to_pylist()
    token = {"triple_id": mine["triple_id"], "video_id": video, "tokenizer_id": "t", "tokenized_at": now()}
    Writer(lake).append("tokens", [token])
    Writer(lake).append("reviews", [{"triple_id": mine["triple_id"], "verdict": "right", "reviewed_at": now()}])
    pin(lake, "saw it")
    maintain(lake)
    # A killed run has left a file that no commit names, and a service an answer for clients who ask again.
    lake.write_file(to_table("triples", [mine]), "triples", "killed")
    lake.storage.put(join(lake.uri, "_serve/answers/today/a.json"), json.dumps(mine["triple_id"]).encode())
    images = [mine["obs"], mine["next_obs"]]
    needles = [row["uri"], json.dumps(row["uri"])[1:-1], video, mine["triple_id"]]
    assert len(traces(lake, needles)) > 8

    done = forget(lake, row["uri"])

    assert traces(lake, needles) == []
    assert not [path for path in traces(lake, ["JFIF"]) if any(image in path_bytes(lake, path) for image in images)]
    assert ([run.run_id for run in done.trained], done.unpinned) == (["saw it"], ["saw it"])
    assert (done.videos, done.rows["tokens"], done.rows["reviews"]) == (1, 1, 1)
    recorded = next(run for run in states(lake) if run.kind == "forget")
    assert (recorded.config["unpinned"], recorded.config["trained"]) == (["saw it"], ["saw it"])
    assert next(run for run in states(lake) if run.run_id == "ingest").config["sources"] == [
        "(forgotten)",
        "/elsewhere",
    ]
    assert identity(lake, other)["uri"]
    for name in TABLES:
        lake.dataset(name).to_table()
    assert check(lake) == []


def path_bytes(lake: Lake, path: str) -> bytes:
    filesystem, _ = lake.storage.filesystem(lake.uri)
    with filesystem.open_input_stream(path) as file:
        return bytes(file.read())


def test_versions_that_never_held_it_stay_readable_for_the_trainings_that_pinned_them(tmp_path: Path) -> None:
    filled = fill(Lake(str(tmp_path)), videos=2)
    lake = filled.lake
    pin(lake, "before")
    rows = lake.dataset("triples").count_rows()
    version = lake.table("triples").version()
    Writer(lake).append("videos", [{"video_id": "late", "uri": "/late.mp4", "added_at": now()}])
    Writer(lake).append("triples", [{"triple_id": "t", "video_id": "late", "uri": "/late.mp4", "labeled_at": now()}])
    done = forget(lake, "/late.mp4")
    assert (done.trained, done.unpinned) == ([], [])
    table = lake.table("triples")
    table.load_as_version(version)
    assert len(table.to_pyarrow_table()) == rows


def test_whoever_was_open_before_writes_nothing_after_it(filled: Filled) -> None:
    lake, video = filled.lake, filled.videos[0]
    row = identity(lake, video)
    ingest, label = Writer(lake), Committer(lake, LABELERS[0], "paused")
    label.fence()
    pair = {"triple_id": "t", "video_id": video, "uri": row["uri"], "labeled_at": now()}
    file = lake.write_file(to_table("triples", [pair]), "triples", "paused")
    forget(lake, row["uri"])
    with pytest.raises(Fenced):
        ingest.append("videos", [row])
    with pytest.raises(Fenced):
        label.commit([file])
    assert lake.dataset("videos").count_rows() == len(filled.videos) - 1
    # What it had written meanwhile is found by the next that keeps order, and is no more.
    lake.write_file(to_table("triples", [pair]), "triples", "paused")
    assert [damage.kind for damage in check(lake)] == ["forgotten rows or files"]
    maintain(lake)
    assert traces(lake, [video, row["uri"]]) == []


def test_a_forget_that_was_killed_at_any_point_is_completed_by_the_next(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, video = filled.lake, filled.videos[0]
    uri = identity(lake, video)["uri"]

    def killed(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("lake.forget.delete_files", killed)
        with pytest.raises(KeyboardInterrupt):
            forget(lake, uri)
    assert tombstones.read(lake).covers(uri, video)
    assert forget(lake, uri)
    assert traces(lake, [video, uri]) == []
    # Once more does no harm, and a name that never was is refused.
    forget(lake, uri)
    with pytest.raises(Refused, match="is called"):
        forget(lake, "/never.mp4")


def test_what_is_brought_back_may_be_written_again(filled: Filled) -> None:
    lake, video = filled.lake, filled.videos[0]
    row = identity(lake, video)
    forget(lake, video)
    away = tombstones.read(lake)
    assert away.covers(row["uri"])
    assert away.covers(video=video)
    tombstones.bring_back(Writer(lake), [row["uri"]])
    assert not tombstones.read(lake).covers(row["uri"], video)
    Writer(lake).append("videos", [row])
    assert check(lake) == []
    assert Counter(lake.dataset("videos").to_table()["video_id"].to_pylist())[video] == 1


def test_the_later_of_two_wishes_counts_whatever_the_clocks_say(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, uri = filled.lake, identity(filled.lake, filled.videos[0])["uri"]
    forget(lake, uri)
    with monkeypatch.context() as patched:
        # On a machine whose clock is a day behind.
        patched.setattr(tombstones, "now", lambda: now() - timedelta(days=1))
        tombstones.bring_back(Writer(lake), [uri])
    assert not tombstones.read(lake).covers(uri)
    with monkeypatch.context() as patched:
        patched.setattr(tombstones, "now", lambda: now() - timedelta(days=2))
        tombstones.record(Writer(lake), [(uri, filled.videos[0])])
    assert tombstones.read(lake).covers(uri)


def test_a_run_that_is_alive_is_spared_unless_it_is_taken_over(tmp_path: Path) -> None:
    filled = fill(Lake(str(tmp_path)), videos=2)
    lake = filled.lake
    with Run(lake, "working", "label", {}, labeler_id=LABELERS[0]):
        committer = Committer(lake, LABELERS[0], "working")
        committer.fence()
        with pytest.raises(Refused, match=r"working.*is alive"):
            forget(lake, filled.videos[0])
        forget(lake, filled.videos[0], take_over=True)
        with pytest.raises(Fenced):
            committer.commit([lake.write_file(to_table("progress", [{"video_id": "v"}]), "progress", "working")])


def test_a_run_that_was_paused_does_not_name_what_was_forgotten_at_its_end(filled: Filled) -> None:
    lake, uri = filled.lake, identity(filled.lake, filled.videos[0])["uri"]
    with Run(lake, "paused", "ingest", {"sources": [uri]}):
        forget(lake, uri, take_over=True)
    assert traces(lake, [uri, json.dumps(uri)[1:-1]]) == []


def test_files_of_a_commit_that_a_successor_followed_stay_where_a_fence_comes_by(tmp_path: Path) -> None:
    """The answer of the commit was lost, and the application transaction is the successor's by now."""
    lake = fill(Lake(str(tmp_path)), videos=1).lake
    first = Committer(lake, LABELERS[0], "first")
    first.fence()
    rows = [{"triple_id": "t", "video_id": "v", "labeler_id": LABELERS[0], "labeled_at": now()}]
    file = lake.write_file(to_table("triples", rows), "triples", "first")
    first.commit([file])
    raise_fences(lake)
    Committer(lake, LABELERS[0], "successor").fence()
    with pytest.raises(Fenced):
        first.writer.commit("triples", [file], first.epoch << 32 | 1)
    assert "t" in lake.dataset("triples").to_table()["triple_id"].to_pylist()


def test_what_a_killed_forget_left_in_checkpoints_goes_with_the_next_repair(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, video = filled.lake, filled.videos[0]
    uri = identity(lake, video)["uri"]
    maintain(lake)

    def killed(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Log, "_drop_checkpoints", killed)
        with pytest.raises(KeyboardInterrupt):
            forget(lake, uri)
    forget(lake, uri)
    maintain(lake)
    assert traces(lake, [uri, json.dumps(uri)[1:-1], video]) == []
