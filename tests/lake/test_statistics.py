"""The statistics of a file, by which every engine leaves files out: of several values and of nulls in one file."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from lake.commits import Committer
from lake.schemas import TABLES, stats_columns
from lake.tables import DataFile, Lake, to_table
from tests.lake.test_readers import READERS, read

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)
# Neither sorted nor distinct; `text` is null in every row, `camera_motion` in all of one file, `confidence` in some.
VALUES = (
    [("b", 30, None, None), ("d", 20, -0.25, None), ("a", 10, -0.75, None), ("c", 20, -0.5, None)],
    [("g", 70, -2.0, 0.5), ("h", 50, None, 0.25), ("e", 60, -1.5, None), ("f", 60, -1.0, 0.75)],
)


def rows(number: int) -> list[dict[str, Any]]:
    return [
        {
            "triple_id": id_,
            "labeler_id": "labeler",
            "obs_pts": pts,
            "confidence": confidence,
            "camera_motion": camera_motion,
            "obs": id_.encode(),
            "next_obs": b"next",
            "labeled_at": NOON + timedelta(days=number, microseconds=pts),
        }
        for id_, pts, confidence, camera_motion in VALUES[number]
    ]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    made = Lake(str(tmp_path_factory.mktemp("lake")))
    made.create()
    committer = Committer(made, "labeler", "run")
    committer.fence()
    files = [made.write_file(to_table("triples", rows(number)), "triples", "run") for number in range(len(VALUES))]
    committer.commit(files)
    return made


def test_statistics_are_the_least_and_the_greatest_value_and_the_number_of_nulls(lake: Lake) -> None:
    for number in range(len(VALUES)):
        content = rows(number)
        file: DataFile = lake.write_file(to_table("triples", content), "triples", "run")
        found = json.loads(file.stats)
        assert found["numRecords"] == file.rows == 4
        for column in stats_columns("triples"):
            known = [row[column] for row in content if row.get(column) is not None]
            assert found["nullCount"][column] == 4 - len(known), column
            bounds = [side[column] for side in (found["minValues"], found["maxValues"]) if column in side]
            if column == "labeled_at":
                bounds = [datetime.fromisoformat(bound) for bound in bounds]
            assert bounds == ([min(known), max(known)] if known else []), column


@pytest.mark.parametrize("name", TABLES)
def test_every_table_has_statistics_of_its_scalars(lake: Lake, name: str) -> None:
    values = {pa.string(): ["x", "y", None], pa.bool_(): [False, True, None]}
    later = {pa.timestamp("us", "UTC"): [NOON, NOON + timedelta(days=1), None]}
    content = {
        field.name: (values | later).get(field.type, None if pa.types.is_nested(field.type) else [1, 2, None])
        for field in TABLES[name]
        if not pa.types.is_nested(field.type) and not pa.types.is_binary(field.type)
    }
    found = json.loads(
        lake.write_file(
            to_table(name, [{key: column[row] for key, column in content.items()} for row in range(3)]), name, "run"
        ).stats
    )
    for column in stats_columns(name):
        assert found["nullCount"][column] == 1, column
        assert found["minValues"][column] < found["maxValues"][column], column


def test_pruning_keeps_every_file_that_holds_a_row(lake: Lake) -> None:
    for number in range(len(VALUES)):
        for row in rows(number):
            for column in ("triple_id", "obs_pts", "confidence"):
                value = row[column]
                text = f"{column} IS NULL" if value is None else f"{column} = {value!r}"
                wanted = pc.field(column).is_null() if value is None else pc.field(column) == value
                found = lake.dataset("triples", prune=text).to_table(columns=["triple_id"], filter=wanted)
                assert row["triple_id"] in found["triple_id"].to_pylist(), text


# By condition, what has to be found; each is at an end of a file's range, inside of it, or null.
CONDITIONS = {
    "triple_id = 'a'": "a", "triple_id = 'd'": "d", "triple_id = 'g'": "g",
    "obs_pts = 10": "a", "obs_pts >= 70": "g", "obs_pts = 20": "cd",
    "confidence = -0.25": "d", "confidence = -2.0": "g", "confidence = -1.0": "f",
    "confidence IS NULL": "bh", "camera_motion IS NULL": "abcde", "camera_motion IS NOT NULL": "fgh",
    "text IS NULL": "abcdefgh",
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
def test_every_engine_finds_the_rows_that_statistics_let_it_leave_out(lake: Lake, reader: str) -> None:
    found = read(reader, lake.table_uri("triples"), *CONDITIONS)
    assert {text: "".join(sorted(ids)) for text, ids in zip(CONDITIONS, found, strict=True)} == CONDITIONS
