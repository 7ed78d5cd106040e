"""Tables of a lake: made once, refused where they cannot be read, and files that are what their schema says."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from lake.errors import Refused
from lake.schemas import DECISIONS, SCHEMA_VERSION, TABLES, stats_columns
from lake.tables import Lake, now, to_table
from lake.writer import Writer


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    made = Lake(str(tmp_path / "lake"))
    made.create()
    return made


def configuration(lake: Lake, name: str) -> dict[str, str]:
    found: dict[str, str] = lake.table(name).metadata().configuration
    return found


def test_a_lake_may_be_made_twice_and_by_several_at_once(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "some" / "lake"))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: lake.create(), range(4)))
    Writer(lake).append("videos", [{"video_id": "v"}])
    lake.create()
    assert lake.read("videos", ["video_id"]).to_pylist() == [{"video_id": "v"}]
    for name in TABLES:
        assert configuration(lake, name) == {
            "delta.checkpointInterval": "50",
            "delta.enableExpiredLogCleanup": "false",
            "delta.deletedFileRetentionDuration": "interval 1 days",
            "delta.dataSkippingStatsColumns": ",".join(stats_columns(name)),
            "worldlake.schema_version": str(SCHEMA_VERSION),
        }


def test_a_place_without_a_lake_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"no lake at .*nothing .*worldlake ingest SRC --lake"):
        Lake(str(tmp_path / "nothing")).table("videos")


def test_a_lake_that_was_in_use_and_lacks_a_table_is_not_made_whole_by_an_ingest(tmp_path: Path) -> None:
    """Once the table came back empty, and nothing said that its rows were gone."""
    lake = Lake(str(tmp_path / "lake"))
    lake.create()
    shutil.rmtree(lake.table_uri("triples"))
    # As a process that was killed while it created them leaves them.
    lake.create()
    Writer(lake).append("videos", [{"video_id": "v"}])
    shutil.rmtree(lake.table_uri("triples"))
    for call in (lake.create, lambda: lake.table("triples")):
        with pytest.raises(Refused, match="lacks its table triples: look with `worldlake repair"):
            call()


def test_a_lake_of_a_newer_worldlake_is_refused_and_one_of_this_version_is_not(lake: Lake) -> None:
    log = Path(lake.uri, "videos", "_delta_log", f"{0:020}.json")
    for version in (SCHEMA_VERSION, SCHEMA_VERSION + 1):
        actions = [json.loads(line) for line in log.read_text().splitlines()]
        for action in actions:
            if "metaData" in action:
                action["metaData"]["configuration"]["worldlake.schema_version"] = str(version)
        log.write_text("\n".join(map(json.dumps, actions)))
        if version == SCHEMA_VERSION:
            assert lake.table("videos").version() == 0
    with pytest.raises(Refused, match=f"schema version {SCHEMA_VERSION + 1}, newer than {SCHEMA_VERSION}"):
        lake.table("videos")


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(Refused, match="which is a file: name a folder"):
        Lake(str(tmp_path / "file" / "lake")).create()
    with pytest.raises(Refused, match="cannot be used: File name too long: check the path"):
        Lake(str(tmp_path / ("x" * 300))).create()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(Refused, match=r"no lake can be made at .*/link: File exists: name a folder to write to"):
        Lake(str(tmp_path / "link")).create()


def test_rows_are_appended_and_no_rows_are_no_commit(lake: Lake) -> None:
    Writer(lake).append("videos", [])
    assert lake.table("videos").version() == 0
    Writer(lake).append("videos", [{"video_id": "v", "bytes": 3}, {"video_id": "w"}])
    assert lake.read("videos", ["video_id", "bytes"]).sort_by("video_id").to_pylist() == [
        {"video_id": "v", "bytes": 3},
        {"video_id": "w", "bytes": None},
    ]


@pytest.mark.parametrize("name", TABLES)
def test_a_file_is_what_its_description_says(lake: Lake, name: str) -> None:
    key = TABLES[name].names[0]
    before = now()
    file = lake.write_file(to_table(name, [{key: "b"}, {key: "a"}]), name, "run-1")
    path = Path(lake.table_uri(name), file.path)
    content = pq.read_table(path)
    assert content.schema.equals(TABLES[name])
    assert content[key].to_pylist() == ["b", "a"]
    assert file.table == name
    assert file.path.startswith("run-1/")
    assert (file.bytes, file.rows) == (os.path.getsize(path), 2)
    assert before <= file.written_at <= now()
    assert file.triple_ids == (("b", "a") if name in DECISIONS else ())
    added = file.as_action()
    assert (added.path, added.size, added.data_change) == (file.path, file.bytes, True)
    assert added.modification_time == int(file.written_at.timestamp() * 1000)
    assert added.partition_values == {}
    # Bytes of images are compressed already; readers ask for statistics of what may be filtered.
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    has_statistics = {column.path_in_schema for column in columns if column.is_stats_set}
    assert has_statistics == set(stats_columns(name))
    assert {column.compression for column in columns} == {"ZSTD"}


def test_two_files_never_have_one_name(lake: Lake) -> None:
    rows = to_table("progress", [{"video_id": "v"}])
    assert len({lake.write_file(rows, "progress", "run").path for _ in range(20)}) == 20


def test_a_lake_travels_to_workers_without_a_handle(lake: Lake) -> None:
    again = pickle.loads(pickle.dumps(lake))
    assert again.read("videos", ["video_id"]).schema == pa.schema([("video_id", pa.string())])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ([pa.field("video_id", pa.int64()), *list(TABLES["videos"])[1:]], "gave video_id of .* another type: restore"),
        (list(TABLES["videos"])[1:], "lacks columns of it: run `worldlake maintain --upgrade"),
    ],
)
def test_a_table_whose_columns_another_program_changed_is_not_written_to(
    lake: Lake, fields: list[pa.Field], says: str
) -> None:
    retries: list[str] = []
    open_before = Writer(lake, on_retry=retries.append)
    write_deltalake(lake.table("videos"), pa.schema(fields).empty_table(), mode="overwrite", schema_mode="overwrite")
    with pytest.raises(Refused, match=says):
        open_before.append("videos", [{"video_id": "v", "uri": "/v"}])
    with pytest.raises(Refused, match=says):
        Writer(lake)
    assert retries == []
