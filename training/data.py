"""From a version of the lake's tables to the rows that a training walks over: chosen in SQL, read with Ray Data."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import ray.data

from lake import tombstones
from lake.errors import Refused
from lake.schemas import TABLES
from lake.tables import Lake
from training.order import Indices
from training.selection import BY_PEOPLE, at_version, select_triples
from training.settings import Source

# Rows with two images each: a block of some tens of megabytes.
_ROWS = 1000
# Labelers with their splits that a refusal lists.
_NAMED = 6


@dataclass(frozen=True)
class Chosen:
    """The triples of a training: `table` has triple_id and action, sorted by id; `sources` index it."""

    table: pa.Table
    sources: list[tuple[Indices, float]]

    def without(self, ids: pa.Array) -> Chosen:
        """The same without some triples."""
        if not len(ids):
            return self
        stays = pc.invert(pc.is_in(self.table["triple_id"], value_set=ids)).to_numpy()
        moved = np.cumsum(stays) - 1
        sources = [(moved[indices[stays[indices]]], factor) for indices, factor in self.sources]
        if not all(len(indices) for indices, _ in sources):
            raise Refused("no image of a source can be read: see the table failures, stages tokenize and decode")
        return Chosen(self.table.filter(pa.array(stays)), sources)


def entombed(lake: Lake, version: int) -> pa.Array:
    """The triples of a version whose videos are forgotten."""
    away = tombstones.read(lake)
    if not away.uris:
        return pa.array([], pa.string())
    table = at_version(lake, "triples", version)
    rows = lake.dataset("triples", table).to_table(columns=["triple_id", "uri", "video_id"]).to_pylist()
    return pa.array([row["triple_id"] for row in rows if away.covers(row["uri"], row["video_id"])], pa.string())


def choose(lake: Lake, sources: Sequence[Source], versions: Mapping[str, int]) -> Chosen:
    """Find the triples of every source at given versions of `triples` and `videos`.

    Raises:
        Refused: a source is empty or wrong, or a version is not there any more.
    """
    found = [select_triples(lake, source, versions) for source in sources]
    for source, rows in zip(sources, found, strict=True):
        if not len(rows):
            raise _none_of(source, lake, versions["triples"])
    rows = pa.concat_tables([table.select(["triple_id", "action"]) for table in found])
    _, first = np.unique(rows["triple_id"].to_numpy(), return_index=True)
    table = rows.take(pa.array(first)).combine_chunks()
    ids = table["triple_id"].combine_chunks()
    # The same set is the same source, whatever order its rows were chosen in.
    indices = [np.sort(pc.index_in(one["triple_id"], value_set=ids).to_numpy().astype(np.int64)) for one in found]
    return Chosen(table, list(zip(indices, [source.factor for source in sources], strict=True)))


def _none_of(source: Source, lake: Lake, version: int) -> Refused:
    """Return why a source is empty, with what there is instead."""
    columns = lake.dataset("triples", at_version(lake, "triples", version)).to_table(columns=["labeler_id", "split"])
    found = columns.group_by(["labeler_id", "split"]).aggregate([([], "count_all")]).to_pylist()
    if not found:
        return Refused(
            "there is no triple to train on: label videos first, or `worldlake ingest --format ...` what people labeled"
        )
    if source.where != BY_PEOPLE:
        query = "SELECT labeler_id, dataset, split, count(*) FROM triples GROUP BY ALL"
        return Refused(
            f"no triple is in {source.model_dump_json(include=source.model_fields_set | {'splits'})}: choose other "
            f'labelers, datasets, splits or conditions (what there is: worldlake sql "{query}" '
            f"--lake {shlex.quote(lake.uri)})"
        )
    wanted = source.splits or tuple({row["split"] for row in found})
    found.sort(key=lambda row: (row["split"] not in wanted, -row["count_all"]))
    most = found[0]
    splits = "" if most["split"] in wanted else f", splits: [{most['split']}]"
    there = ", ".join(f"{row['labeler_id']} {row['split']} {row['count_all']:,}" for row in found[:_NAMED])
    return Refused(
        f"no triple of the split {' or '.join(sorted(wanted))} was labeled by people: `worldlake ingest --format ...` "
        f"what they labeled, or train on other labels, --source '{{labelers: [{most['labeler_id']}]{splits}}}' "
        f"(there are: {there}{', ...' if len(found) > _NAMED else ''})"
    )


def read(
    lake: Lake, name: str, version: int, columns: Sequence[str], ids: pa.Array, where: pc.Expression | None = None
) -> ray.data.Dataset:
    """Rows of a version of a table whose triple_id is among `ids`; columns have the types of `lake.schemas`.

    The files are those of the version, which no listing has to find (Ray's own waits 30 s in it), and credentials are
    asked for when a file is opened: a training may start hours after its driver.
    """
    files = lake.dataset(name, at_version(lake, name, version)).files
    schema = pa.schema([TABLES[name].field(column) for column in columns])
    return ray.data.from_arrow([pa.table({"file": [file]}) for file in files]).map_batches(
        _rows,
        fn_kwargs={"lake": lake, "name": name, "schema": schema, "ids": ray.put(ids), "where": where},
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=0.5,
    )


def _rows(
    files: pa.Table, lake: Lake, name: str, schema: pa.Schema, ids: ray.ObjectRef, where: pc.Expression | None
) -> Iterator[pa.Table]:
    wanted = ray.get(ids)
    filesystem = lake.storage.subtree(lake.table_uri(name))
    for file in files["file"].to_pylist():
        with pq.ParquetFile(file, filesystem=filesystem, pre_buffer=True) as parquet:
            for batch in parquet.iter_batches(_ROWS, columns=schema.names):
                # Compaction may write strings as views, which do not go together with others.
                block = pa.Table.from_batches([batch]).select(schema.names).cast(schema)
                kept = block.filter(pc.is_in(block["triple_id"], value_set=wanted))
                yield kept if where is None else kept.filter(where)
