"""Lakes of an older worldlake: read as they are, refused to writers with the remedy, and upgraded in place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake.table import TableAlterer

from lake import schemas, tables
from lake.errors import Fenced, Refused
from lake.forget import forget
from lake.maintenance import maintain
from lake.repair import check
from lake.runs import Run, new_run_id, states
from lake.schemas import SCHEMA_VERSION, SPEC, STRING, TABLES, Column
from lake.tables import Lake
from lake.upgrade import upgrade
from lake.writer import Writer
from tests.lake.old import content, old_lake
from tests.worldlake.command import worldlake

NEWER = SCHEMA_VERSION + 1


@contextmanager
def newer() -> Iterator[None]:
    """As if every table had got one more column."""
    with pytest.MonkeyPatch.context() as patch:
        column = Column("license", STRING, "License of the video.", since=NEWER)
        patch.setattr(schemas, "SPEC", tuple(replace(table, columns=(*table.columns, column)) for table in SPEC))
        patch.setattr(tables, "SCHEMA_VERSION", NEWER)
        for name in TABLES:
            patch.setitem(TABLES, name, TABLES[name].append(pa.field("license", STRING)))
        yield


def versions(lake: Lake) -> list[int]:
    return [lake.table(name).version() for name in TABLES]


def is_whole(lake: Lake, before: dict[str, list[dict[str, Any]]]) -> None:
    """Every row is there, every table has the column, and the lake can be written."""
    assert content(lake) == before
    for name in TABLES:
        assert "license" in pa.schema(lake.table(name).schema().to_arrow()).names
        assert set(lake.read(name, ["license"])["license"].to_pylist()) == {None}
    assert upgrade(lake) == {}
    assert check(lake) == []
    Writer(lake).append("videos", [{"video_id": "new", "uri": "/new", "license": "CC0"}])
    assert "CC0" in lake.read("videos", ["license"])["license"].to_pylist()


def test_a_lake_is_upgraded_in_place(tmp_path: Path, place: str) -> None:
    lake = old_lake(tmp_path, place if place.startswith("s3:") else None)
    upgrade(lake)
    before = content(lake)
    assert len(before["reviews"]) == 3
    with newer():
        # Readers need no upgrade.
        assert set(lake.read("triples", ["license"])["license"].to_pylist()) == {None}
        remedy = rf"older than schema version {NEWER}, .* run `worldlake maintain --upgrade --lake {lake.uri}`$"
        for write in (lambda: Writer(lake), lambda: maintain(lake), lambda: forget(lake, "/anything")):
            with pytest.raises(Refused, match=remedy):
                write()
        assert upgrade(lake) == {name: ["license"] for name in TABLES}
        is_whole(lake, before)
        # To the columns of this code, and to those of the newer one.
        assert [run.status for run in states(lake) if run.kind == "upgrade"] == ["finished", "finished"]
    with pytest.raises(Refused, match=f"schema version {NEWER}, newer than {SCHEMA_VERSION}: upgrade worldlake"):
        lake.table("videos")


def test_rows_from_before_an_upgrade_are_rewritten_with_the_others(tmp_path: Path) -> None:
    """Also columns that are no longer in use, as `agreement` is, stay in the way of nothing."""
    lake = old_lake(tmp_path)
    upgrade(lake)
    with newer():
        upgrade(lake)
        before = content(lake)
        maintain(lake, cluster=True)
        assert content(lake) == before
        gone, *_ = (row["uri"] for row in before["videos"])
        forget(lake, gone)
        assert not any(row["uri"] == gone for name in ("videos", "triples") for row in content(lake)[name])
        assert check(lake) == []
        row = lake.read("triples", TABLES["triples"].names).to_pylist()[0] | {"license": "CC0"}
        Writer(lake).write("triples", [row], replacing=("triple_id", [row["triple_id"]]))
        assert "CC0" in lake.read("triples", ["license"])["license"].to_pylist()


def test_what_was_open_before_an_upgrade_is_ended(tmp_path: Path) -> None:
    lake = old_lake(tmp_path)
    upgrade(lake)
    writer = Writer(lake)
    with newer():
        upgrade(lake)
        with pytest.raises(Fenced, match="upgraded meanwhile"):
            writer.append("videos", [{"video_id": "late"}])


def test_an_upgrade_beside_a_run_is_refused(tmp_path: Path) -> None:
    lake = old_lake(tmp_path)
    upgrade(lake)
    with Run(lake, new_run_id(), "label", {}, labeler_id="x") as run:
        before = versions(lake)
        with newer(), pytest.raises(Refused, match=f"run {run.run_id} .*is alive .*: upgrade when it has ended"):
            upgrade(lake)
        assert versions(lake) == before


class Killed(BaseException):
    pass


# Two changes a table; `runs` is the first.
@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("step", [1, 2, 3, 4, 2 * len(TABLES) - 1, 2 * len(TABLES)])
def test_an_upgrade_that_ended_half_way_is_completed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, side: str
) -> None:
    lake = old_lake(tmp_path)
    upgrade(lake)
    before, steps = content(lake), count(1)

    def disturbed(change: Any) -> Any:
        def disturb(*args: Any, **options: Any) -> None:
            is_it = next(steps) == step
            if not (is_it and side == "before"):
                change(*args, **options)
            if is_it:
                raise Killed

        return disturb

    with newer():
        with monkeypatch.context() as patch:
            for name in ("add_columns", "set_table_properties"):
                patch.setattr(TableAlterer, name, disturbed(getattr(TableAlterer, name)))
            with pytest.raises(Killed):
                upgrade(lake)
        upgrade(lake)
        is_whole(lake, before)


def test_the_command_says_what_it_added(tmp_path: Path) -> None:
    lake = old_lake(tmp_path)
    upgrade(lake)
    code, said = worldlake("maintain", "--upgrade", "--lake", lake.uri)
    assert (code, "nothing to upgrade" in said) == (0, True)
    code, said = worldlake("maintain", "--upgrade", "--cluster", "--lake", lake.uri)
    assert (code, "leave out --cluster" in said) == (2, True)


def test_every_column_of_the_first_version_was_there(tmp_path: Path) -> None:
    """A column that is added without `since` would be silently dropped from the rows of older lakes."""
    lake = old_lake(tmp_path)
    for table in SPEC:
        first = {column.name for column in table if column.since == 1}
        assert first <= set(pa.schema(lake.table(table.name).schema().to_arrow()).names), table.name
