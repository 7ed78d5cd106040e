"""Compaction, vacuum and forgetting on filled lakes."""

import json
import os
import shutil
import time
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from deltalake import WriterProperties, write_deltalake

from lake import maintenance, sql
from lake.commits import Committer
from lake.errors import Refused, Superseded
from lake.forget import forget
from lake.maintenance import maintain
from lake.runs import Run, states
from lake.schemas import TABLES
from lake.tables import Lake, now, to_table
from lake.writer import Writer
from tests.lake.filled import LABELERS, Filled, fill


@pytest.fixture
def filled(place: str) -> Filled:
    return fill(Lake(place))


def contents(lake: Lake) -> dict[str, list[str]]:
    """Every row of every table but the record of the maintaining itself, in an order of its own."""
    rows = {name: lake.dataset(name).to_table().to_pylist() for name in TABLES}
    return {name: sorted(repr(row) for row in rows[name] if row.get("kind") != "maintain") for name in rows}


def stored_videos(lake: Lake, name: str) -> set[str]:
    """Video ids in all Parquet files of a table in the store, whether a version names them or not."""
    filesystem, root = lake.storage.filesystem(lake.table_uri(name))
    found: set[str] = set()
    for info in filesystem.get_file_info(pafs.FileSelector(root, recursive=True)):
        if info.path.endswith(".parquet") and "_delta_log" not in info.path:
            found.update(pq.read_table(info.path, filesystem=filesystem, columns=["video_id"])["video_id"].to_pylist())
    return found


def train(lake: Lake, run_id: str) -> int:
    """Record a training on the newest version of `triples`, and return that version."""
    version = lake.table("triples").version()
    event = {"run_id": run_id, "kind": "train", "status": "finished", "host": "h", "pid": 1, "started_at": now()}
    pins = json.dumps({"triples": version})
    Writer(lake).append("runs", [{**event, "tables_read": pins, "heartbeat_at": now(), "recorded_at": now()}])
    return version


def commit_orphan(lake: Lake, video: str) -> str:
    rows = [{"triple_id": "orphan", "video_id": video, "labeler_id": LABELERS[0], "labeled_at": now()}]
    return lake.write_file(to_table("triples", rows), "triples", "killed").path


def test_maintaining_changes_files_not_rows(filled: Filled) -> None:
    lake = filled.lake
    before = contents(lake)
    transactions = {one: lake.table("triples").transaction_version(f"label/{one}") for one in LABELERS}
    for cluster in (False, True):
        done = maintain(lake, cluster=cluster)
        assert contents(lake) == before
        assert done["triples"].files_after == 1
    for name in TABLES:
        table = lake.table(name)
        assert (table.protocol().min_reader_version, table.protocol().min_writer_version) == (1, 2)
        statistics = pa.table(table.get_add_actions(flatten=True)).column_names
        assert not [column for column in statistics if column.split(".")[-1] in ("obs", "next_obs")]
    assert {one: lake.table("triples").transaction_version(f"label/{one}") for one in LABELERS} == transactions
    ids = lake.dataset("triples").to_table(columns=["video_id"])["video_id"].to_pylist()
    assert sum(one != other for one, other in pairwise(ids)) == len(filled.videos) - 1
    for pairs in ("triples", "rejections"):
        assert lake.read(pairs, ["triple_id"], pc.field("labeler_id") == LABELERS[0]).num_rows == 20
    assert lake.read("triples", ["triple_id"], pc.field("obs").is_valid()).num_rows == 40

    again = Committer(lake, LABELERS[0], "run")
    again.fence()
    assert sum(map(len, again.decided(filled.videos).values())) == 40
    fresh = to_table("triples", [{"triple_id": "new", "video_id": "v", "labeler_id": LABELERS[0], "labeled_at": now()}])
    again.commit([lake.write_file(fresh, "triples", "run")])
    assert lake.dataset("triples").count_rows() == 41


def test_files_that_no_commit_named_go_when_they_are_old(tmp_path: Path) -> None:
    filled = fill(Lake(str(tmp_path)), videos=1)
    old, young = (tmp_path / "triples" / commit_orphan(filled.lake, "v") for _ in range(2))
    two_days_ago = time.time() - 48 * 3600
    os.utime(old, (two_days_ago, two_days_ago))
    assert maintain(filled.lake)["triples"].deleted == 1
    assert (old.exists(), young.exists()) == (False, True)


def test_nothing_is_deleted_under_a_live_run_or_before_a_day(tmp_path: Path) -> None:
    filled = fill(Lake(str(tmp_path)), videos=1)
    old = tmp_path / "triples" / commit_orphan(filled.lake, "v")
    two_days_ago = time.time() - 48 * 3600
    os.utime(old, (two_days_ago, two_days_ago))
    with Run(filled.lake, "working", "label", {}, labeler_id=LABELERS[0]):
        beside = maintain(filled.lake)
        assert {table.deleted for table in beside.values()} == {None}
        assert old.exists()
        assert any(table.files_after < table.files_before for table in beside.values())
        with pytest.raises(Refused, match="working"):
            forget(filled.lake, filled.videos[0])
    with pytest.raises(Refused, match="24"):
        maintain(filled.lake, keep_hours=1)
    with Run(filled.lake, "maintaining", "maintain", {}), pytest.raises(Refused, match="maintaining"):
        maintain(filled.lake)
    assert maintain(filled.lake)["triples"].deleted
    assert not old.exists()


def test_rows_that_are_replaced_meanwhile_stay_and_are_compacted_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = fill(Lake(str(tmp_path))).lake
    row, other = lake.read("videos", TABLES["videos"].names).slice(0, 2).to_pylist()
    Writer(lake).append("videos", [{**other, "video_id": "v" * 32}])
    before, writer = contents(lake), maintenance.rewritten
    replaced: list[str] = []

    def replaces(name: str) -> WriterProperties:
        # The table is open by then, and not compacted yet.
        if name == "videos" and not replaced:
            replaced.append(row["video_id"])
            mine = f"video_id = '{row['video_id']}'"
            write_deltalake(lake.table(name), to_table(name, [row]), mode="overwrite", predicate=mine)
        return writer(name)

    monkeypatch.setattr(maintenance, "rewritten", replaces)
    assert maintain(lake)["videos"].files_after > 1
    assert replaced
    assert maintain(lake)["videos"].files_after == 1
    assert contents(lake) == before


@pytest.mark.parametrize("kind", ["label", "ingest", "maintain", "forget"])
def test_nothing_begins_beside_a_forget(tmp_path: Path, kind: str) -> None:
    lake = Lake(str(tmp_path))
    lake.create()
    with (
        Run(lake, "forgetting", "forget", {}),
        pytest.raises(Refused, match="forgetting is alive"),
        Run(lake, "other", kind, {}),
    ):
        raise AssertionError("it began")
    with Run(lake, "later", kind, {}):
        pass
    assert {run.run_id: run.status for run in states(lake)} == {
        "forgetting": "finished", "other": "refused", "later": "finished",
    }  # fmt: skip


def test_a_run_that_was_paused_commits_nothing_after_a_forget(tmp_path: Path) -> None:
    filled = fill(Lake(str(tmp_path)), videos=2)
    paused = Committer(filled.lake, LABELERS[0], "paused")
    paused.fence()
    rows = [{"triple_id": "t", "video_id": filled.videos[0], "labeler_id": LABELERS[0], "labeled_at": now()}]
    file = filled.lake.write_file(to_table("triples", rows), "triples", "paused")
    forget(filled.lake, filled.videos[0])
    with pytest.raises(Superseded):
        paused.commit([file])


def test_the_error_that_ended_a_run_is_not_masked_by_a_store_that_is_away(tmp_path: Path) -> None:
    lake, said = Lake(str(tmp_path / "lake")), list[str]()
    lake.create()
    with pytest.raises(ZeroDivisionError), Run(lake, "run", "label", {}, on_error=said.append):
        raise ZeroDivisionError(shutil.rmtree(lake.uri))
    assert "could not be recorded" in said[0]


def test_a_forgotten_video_is_nowhere(filled: Filled) -> None:
    lake, video = filled.lake, filled.videos[0]
    [judged] = lake.read("triples", ["triple_id"]).slice(0, 1)["triple_id"].to_pylist()
    [owner] = [row["video_id"] for row in lake.read("triples", ["triple_id", "video_id"]).to_pylist()
               if row["triple_id"] == judged]  # fmt: skip
    Writer(lake).append("reviews", [{"triple_id": judged, "verdict": "right", "reviewed_at": now()}])
    Writer(lake).append("failures", [{"video_id": video, "uri": "u", "failed_at": now()}])
    maintain(lake)
    commit_orphan(lake, video)
    uri = next(row["uri"] for row in lake.read("videos", ["video_id", "uri"]).to_pylist() if row["video_id"] == video)

    done = forget(lake, uri)

    reviews = int(owner == video)
    assert done.videos == 1
    assert {name: done.rows[name] for name in done.rows | {"reviews": 0} if done.rows[name] or name == "reviews"} == {
        "videos": 1, "triples": 10, "rejections": 10, "progress": 2, "failures": 1, "reviews": reviews,
    }  # fmt: skip
    assert lake.dataset("reviews").count_rows() == 1 - reviews
    for name in done.rows:
        if name != "reviews":
            assert video not in stored_videos(lake, name)
            assert lake.table(name).protocol().min_writer_version == 2
    others = set(filled.videos[1:])
    with sql.query(lake, "SELECT count(*) AS n FROM current WHERE dataset = 'two' AND confidence > -0.15") as result:
        assert result.read_all().to_pylist() == [{"n": 4}]
    assert stored_videos(lake, "triples") == others
    for row in lake.dataset("triples").to_table().to_pylist():
        assert (row["obs"], row["next_obs"]) == filled.images[row["triple_id"]]
    again = Committer(lake, LABELERS[0], "run")
    again.fence()
    assert set(again.decided(filled.videos)) == others


def test_forgetting_tells_which_trainings_saw_it_and_keeps_what_the_others_read(tmp_path: Path) -> None:
    filled = fill(Lake(str(tmp_path)), videos=2)
    lake = filled.lake
    before = train(lake, "before")
    kept = lake.dataset("triples").count_rows()
    maintain(lake)
    committer = Committer(lake, LABELERS[0], "run")
    committer.fence()
    rows = [{"triple_id": "t", "video_id": "bad0", "dataset": "bad", "labeler_id": LABELERS[0], "labeled_at": now()}]
    committer.commit([lake.write_file(to_table("triples", rows), "triples", "run")])
    Writer(lake).append("videos", [{"video_id": "bad0", "uri": "/bad0.mp4", "dataset": "bad", "added_at": now()}])
    train(lake, "after")

    done = forget(lake, "bad")

    assert [run.run_id for run in done.trained] == ["after"]
    assert stored_videos(lake, "triples") == set(filled.videos)
    table = lake.table("triples")
    table.load_as_version(before)
    assert len(table.to_pyarrow_table()) == kept


def test_what_is_not_there_cannot_be_forgotten(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    lake.create()
    for name in ("nothing", "/no/such.mp4", "s3://bucket/no.mp4", "'; DROP"):
        with pytest.raises(Refused, match="is called"):
            forget(lake, name)
