"""A damaged lake says in one line what is wrong and what helps, and that helps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lake.log import Log, commit_path
from lake.tables import Lake
from tests.lake.filled import fill
from tests.worldlake.command import worldlake


def lose_a_file(lake: Lake) -> None:
    Path(lake.table_uri("progress"), next(iter(Log(lake, "progress").newest))).unlink()


def spoil_a_file(lake: Lake) -> None:
    path = Path(lake.table_uri("progress"), next(iter(Log(lake, "progress").newest)))
    path.write_bytes(bytes(path.stat().st_size))


def half_a_commit(lake: Lake) -> None:
    path = Path(lake.table_uri("videos"), commit_path(lake.table("videos").version()))
    path.write_bytes(path.read_bytes()[:30])


def half_a_checkpoint(lake: Lake) -> None:
    lake.checkpoint(lake.table("videos"), "videos")
    [path] = Path(lake.table_uri("videos"), "_delta_log").glob("*.checkpoint.parquet")
    path.write_bytes(path.read_bytes()[:200])


def wrong_pointer(lake: Lake) -> None:
    Path(lake.table_uri("videos"), "_delta_log", "_last_checkpoint").write_text('{"version":99,"size":3}')


@pytest.mark.parametrize(
    "damage",
    [lose_a_file, spoil_a_file, half_a_commit, half_a_checkpoint, wrong_pointer],
    ids=lambda damage: damage.__name__,
)
def test_damage_is_one_line_with_the_remedy(tmp_path: Path, damage: Callable[[Lake], None]) -> None:
    lake = fill(Lake(str(tmp_path / "lake")), videos=1).lake
    damage(lake)
    code, said = worldlake("status", "--lake", lake.uri)
    assert (code, len(said.splitlines())) == (2, 1), said
    assert "worldlake repair" in said
    code, said = worldlake("repair", "--check", "--lake", lake.uri)
    assert (code, said.splitlines()[-1]) == (3, "1 kind of damage found"), said
    code, said = worldlake("repair", "--lake", lake.uri, "--take-over")
    assert code == 0, said
    code, said = worldlake("status", "--lake", lake.uri)
    assert code == 0, said
    assert worldlake("repair", "--check", "--lake", lake.uri) == (0, "nothing is damaged\n")


def test_no_repair_where_no_lake_is(tmp_path: Path) -> None:
    code, said = worldlake("repair", "--lake", str(tmp_path / "mistyped"))
    assert (code, len(said.splitlines())) == (2, 1), said
    assert not (tmp_path / "mistyped").exists()
