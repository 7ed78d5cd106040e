from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from lake import maintenance, writer
from lake.cached_tables import CachedLake
from lake.commits import Committer
from lake.forget import forget
from lake.runs import Run
from lake.sql import query
from lake.tables import Lake, now, to_table
from lake.writer import Writer
from tests.lake.filled import LABELERS, Filled, fill


@pytest.fixture
def filled(place: str) -> Filled:
    return fill(Lake(place))


def test_it_reads_what_a_fresh_lake_reads_after_every_change(filled: Filled) -> None:
    lake, kept = filled.lake, CachedLake(filled.lake)

    def check() -> None:
        for name in ("triples", "rejections", "videos", "runs"):
            fresh, ours = (one.dataset(name).to_table() for one in (lake, kept))
            assert ours.schema == fresh.schema
            key = fresh.schema.names[0]
            assert ours.sort_by(key).equals(fresh.sort_by(key)), name
        with query(kept, "SELECT count(*) AS n FROM triples WHERE dataset = 'one'") as result:
            assert result.read_all()["n"].to_pylist() == [
                lake.dataset("triples").count_rows(pc.field("dataset") == "one")
            ]

    check()
    versions = kept.versions("triples", "videos")
    assert versions == kept.versions("triples", "videos")
    Writer(lake).append("videos", [{"video_id": "new", "uri": "/new", "dataset": "one", "added_at": now()}])
    assert kept.versions("triples", "videos")[1] > versions[1]
    check()
    maintenance.maintain(lake, cluster=True)
    check()
    forget(lake, filled.videos[0])
    check()


def test_few_rows_are_found_with_their_images(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = CachedLake(filled.lake)

    def images(ids: list[str]) -> dict[str, tuple[bytes, bytes]]:
        where = pc.field("triple_id").isin(pa.array(ids, pa.string()))
        found = kept.find("triples", ["triple_id", "obs", "next_obs"], where).to_pylist()
        return {row["triple_id"]: (row["obs"], row["next_obs"]) for row in found}

    assert images([*filled.images, "none"]) == filled.images
    # Several row groups in the one file that is left.
    monkeypatch.setattr(writer, "_IMAGE_ROWS", 8)
    maintenance.maintain(filled.lake, cluster=True)
    (file,) = kept.dataset("triples").get_fragments()
    assert file.num_row_groups == 5
    some = list(filled.images)[::7]
    assert images(some) == {id_: filled.images[id_] for id_ in some}
    assert images([]) == {}


def test_writers_of_a_version_are_counted_as_they_were(filled: Filled) -> None:
    kept, lake = CachedLake(filled.lake), filled.lake
    before = lake.table("triples").version()
    with Run(lake, "later", "label", {}, labeler_id=LABELERS[0]):
        committer = Committer(lake, LABELERS[0], "later")
        committer.fence()
        row = {"triple_id": "x", "run_id": "later", "labeler_id": LABELERS[0], "action": "a", "labeled_at": now()}
        committer.commit([lake.write_file(to_table("triples", [row]), "triples", "later")])
    first = {f"label-{labeler[:8]}": 20 for labeler in LABELERS}
    assert kept.writers(before) == first
    assert kept.writers(lake.table("triples").version()) == {**first, "later": 1}
    assert kept.writers(10_000) == {}
