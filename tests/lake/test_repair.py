"""Every kind of damage is found by `check`, explained, repaired, and on record; a whole lake is left alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from lake import tombstones
from lake.commits import Committer
from lake.errors import Refused
from lake.forget import forget
from lake.log import Log, stored
from lake.maintenance import maintain
from lake.repair import check, repair
from lake.runs import Run, states
from lake.schemas import TABLES
from lake.storage import join
from lake.tables import Lake, now, to_table
from lake.writer import Writer
from tests.lake.filled import LABELERS, Filled, fill
from tests.lake.traces import traces


@pytest.fixture
def filled(place: str) -> Filled:
    return fill(Lake(place))


def newest(lake: Lake, name: str) -> list[str]:
    return sorted(Log(lake, name).newest)


def lose_a_file(filled: Filled) -> None:
    lake = filled.lake
    lake.storage.delete(join(lake.table_uri("triples"), newest(lake, "triples")[0]))


def cut_a_file(filled: Filled) -> None:
    lake = filled.lake
    lake.storage.put(join(lake.table_uri("rejections"), newest(lake, "rejections")[0]), b"")


def lose_the_record_of_a_run(filled: Filled) -> None:
    lake = filled.lake
    lake.storage.delete(join(lake.table_uri("runs"), newest(lake, "runs")[0]))


def half_a_commit(filled: Filled) -> None:
    lake = filled.lake
    path = f"_delta_log/{lake.table('videos').version() + 1:020}.json"
    lake.storage.put(join(lake.table_uri("videos"), path), b'{"add":{"path":')


def lose_a_table(filled: Filled) -> None:
    lake = filled.lake
    for path in stored(lake, "reviews"):
        lake.storage.delete(join(lake.table_uri("reviews"), path))


def two_rows(filled: Filled) -> None:
    lake = filled.lake
    Writer(lake).append("videos", lake.dataset("videos").to_table().slice(0, 1).to_pylist())
    Writer(lake).append("triples", lake.dataset("triples").to_table().slice(0, 2).to_pylist())


def accepted_and_rejected(filled: Filled) -> None:
    lake = filled.lake
    [row] = lake.dataset("rejections").to_table().slice(0, 1).to_pylist()
    Writer(lake).append("triples", [{name: row[name] for name in row if name != "reasons"}])


def sums(filled: Filled) -> None:
    lake = filled.lake
    row = {"video_id": filled.videos[0], "labeler_id": LABELERS[0], "sampled": 99, "finished_at": now()}
    Writer(lake).append("progress", [row])


def entombed(filled: Filled) -> None:
    lake = filled.lake
    [row] = lake.dataset("videos").to_table().slice(0, 1).to_pylist()
    tombstones.record(Writer(lake), [(row["uri"], row["video_id"])])


def half_a_checkpoint(filled: Filled) -> None:
    lake = filled.lake
    lake.checkpoint(lake.table("triples"), "triples")
    path = join(lake.table_uri("triples"), f"_delta_log/{lake.table('triples').version():020}.checkpoint.parquet")
    lake.storage.put(path, (lake.storage.get(path) or b"")[:100])


def lose_a_checkpoint(filled: Filled) -> None:
    lake = filled.lake
    lake.checkpoint(lake.table("videos"), "videos")
    path = f"_delta_log/{lake.table('videos').version():020}.checkpoint.parquet"
    lake.storage.delete(join(lake.table_uri("videos"), path))


def spoil_a_file(filled: Filled) -> None:
    lake = filled.lake
    uri = join(lake.table_uri("triples"), newest(lake, "triples")[0])
    lake.storage.put(uri, os.urandom(len(lake.storage.get(uri) or b"")))


def spoil_the_record_of_a_run(filled: Filled) -> None:
    lake = filled.lake
    uri = join(lake.table_uri("runs"), newest(lake, "runs")[0])
    lake.storage.put(uri, bytes(len(lake.storage.get(uri) or b"")))


DAMAGES: dict[Callable[[Filled], None], str] = {
    lose_a_file: "missing files",
    cut_a_file: "missing files",
    lose_the_record_of_a_run: "missing files",
    spoil_a_file: "unreadable files",
    spoil_the_record_of_a_run: "unreadable files",
    half_a_commit: "half-written commits",
    lose_a_table: "missing table",
    half_a_checkpoint: "broken checkpoints",
    lose_a_checkpoint: "broken checkpoints",
    two_rows: "rows of one id",
    accepted_and_rejected: "pairs accepted and rejected",
    sums: "sums that do not balance",
    entombed: "forgotten rows or files",
}


@pytest.mark.parametrize(
    "damage",
    [one if one in (lose_a_file, two_rows) else pytest.param(one, marks=pytest.mark.slow) for one in DAMAGES],
    ids=lambda damage: damage.__name__,
)
def test_damage_is_found_repaired_and_recorded(filled: Filled, damage: Callable[[Filled], None]) -> None:
    lake = filled.lake
    assert check(lake) == []
    damage(filled)
    found = check(lake)
    assert DAMAGES[damage] in {one.kind for one in found}
    assert all(one.text().count("\n") == 0 and one.count > 0 for one in found)
    # Without the record of its end, a run of this process seems to be alive.
    done = repair(lake, take_over=True)
    assert [one.row() for one in done][: len(found)] == [one.row() for one in found]
    assert check(lake) == []
    for name in TABLES:
        lake.dataset(name).to_table()
    [recorded] = [run for run in states(lake) if run.kind == "repair"]
    assert recorded.status == "finished"
    assert DAMAGES[damage] in {one["kind"] for one in recorded.config["repaired"]}
    # What was finished and lost rows is pending again; who decides it anew finds no pair twice.
    again = Committer(lake, LABELERS[0], "again")
    again.fence()
    again.decided(filled.videos)


def test_a_compaction_that_the_disk_forgot_gives_back_what_it_was_made_from(filled: Filled) -> None:
    lake = filled.lake
    before = sorted(map(repr, lake.dataset("triples").to_table().to_pylist()))
    maintain(lake)
    [compacted] = newest(lake, "triples")
    lake.storage.put(join(lake.table_uri("triples"), compacted), b"")
    done = repair(lake)
    assert "bring back" in done[0].remedy
    assert sorted(map(repr, lake.dataset("triples").to_table().to_pylist())) == before


def test_files_of_killed_runs_are_told_once_they_are_a_day_old(tmp_path: Path) -> None:
    lake = fill(Lake(str(tmp_path)), videos=1).lake
    row: dict[str, Any] = {"triple_id": "orphan", "video_id": "v", "labeled_at": now()}
    path = tmp_path / "triples" / lake.write_file(to_table("triples", [row]), "triples", "killed").path
    assert check(lake) == []
    two_days_ago = time.time() - 48 * 3600
    os.utime(path, (two_days_ago, two_days_ago))
    assert [one.kind for one in check(lake)] == ["files that no commit names"]
    repair(lake)
    assert not path.exists()


def test_a_log_that_is_damaged_in_its_middle_is_refused_with_the_remedy(tmp_path: Path) -> None:
    lake = fill(Lake(str(tmp_path)), videos=1).lake
    (tmp_path / "videos" / "_delta_log" / f"{0:020}.json").write_text("")
    assert [one.kind for one in check(lake)] == ["half-written commits"]
    with pytest.raises(Refused, match="backup"):
        repair(lake)


@pytest.mark.parametrize("kept", ["no log", "a checkpoint"])
def test_data_whose_log_is_lost_is_never_deleted(tmp_path: Path, kept: str) -> None:
    """Once its files were the orphans of a table that the repair had just created."""
    lake = fill(Lake(str(tmp_path)), videos=1).lake
    lake.checkpoint(lake.table("triples"), "triples")
    for path in (tmp_path / "triples" / "_delta_log").iterdir():
        if kept == "no log" or path.suffix == ".json":
            path.unlink()
    before = sorted(stored(lake, "triples"))
    assert [one.kind for one in check(lake)] == ["lost logs"]
    with pytest.raises(Refused, match="restore triples/_delta_log from a backup"):
        repair(lake)
    assert sorted(stored(lake, "triples")) == before


def test_a_file_that_nobody_can_read_stops_no_forget(filled: Filled) -> None:
    """Once it did for ever, also where no commit named it: its footer, or a page, was not what Parquet wants."""
    lake = filled.lake
    rows = lake.dataset("triples").to_table()
    for damage in ("footer", "page"):
        uri = join(lake.table_uri("triples"), lake.write_file(rows, "triples", damage).path)
        content = bytearray(lake.storage.get(uri) or b"")
        place = len(content) - 60 if damage == "footer" else 8
        content[place : place + 40] = os.urandom(40)
        lake.storage.put(uri, bytes(content))
    gone = lake.dataset("videos").to_table().to_pylist()[0]["uri"]
    forget(lake, gone, take_over=True)
    assert check(lake) == []
    assert traces(lake, {gone}) == []


def test_a_log_with_a_gap_is_refused_and_nothing_is_deleted_by_it(tmp_path: Path) -> None:
    lake = fill(Lake(str(tmp_path)), videos=1).lake
    maintain(lake)
    (tmp_path / "triples" / "_delta_log" / f"{1:020}.json").unlink()
    assert [one.kind for one in check(lake)] == ["half-written commits"]
    for command in (repair, maintain):
        with pytest.raises(Refused, match="backup"):
            command(lake)


def test_a_repair_that_is_killed_keeps_what_it_brings_back(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = filled.lake
    rows = lake.dataset("triples").count_rows()
    maintain(lake)
    lake.storage.delete(join(lake.table_uri("triples"), newest(lake, "triples")[0]))

    def killed(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(DeltaTable, "create_write_transaction", killed)
        with pytest.raises(KeyboardInterrupt):
            check(lake)[0].repair()
    assert check(lake)
    repair(lake)
    assert lake.dataset("triples").count_rows() == rows


def test_no_repair_beside_a_run_that_is_alive_and_none_where_no_lake_is(tmp_path: Path) -> None:
    lake = fill(Lake(str(tmp_path / "lake")), videos=1).lake
    with Run(lake, "working", "label", {}, labeler_id=LABELERS[0]):
        with pytest.raises(Refused, match=r"working.*is alive"):
            repair(lake)
        assert repair(lake, take_over=True) == []
    with pytest.raises(Refused, match="no lake"):
        check(Lake(str(tmp_path / "elsewhere")))
    with pytest.raises(Refused, match="no lake"):
        repair(Lake(str(tmp_path / "elsewhere")))
    assert not (tmp_path / "elsewhere").exists()
