"""Selects triples to train on: the most likely of every class in turn, as one SQL statement over ids and scores.

Qiu et al., arXiv 2506.06006: the dynamics model's labels are sorted by likelihood within each class of a data set, and
taken from the classes in turns until there are K of the data set (K = 7000 there), so that neither the labels that the
model is unsure of nor the classes that are frequent take over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from pydantic import Field

from lake.errors import Refused
from lake.settings import Settings
from lake.sql import sql_reason
from lake.tables import Lake

BY_PEOPLE = "labeler_id LIKE 'human:%'"
"""A condition on triples: people named their actions."""

_PIXELS = ("obs", "next_obs")
_TABLES = ("videos", "triples")

# The same words are the same class, whatever their case, punctuation and articles. Anything cleverer (clusters of
# embeddings) needs a number of clusters and an embedding, changes every class when a row is added, and cannot be read
# off the table; this can. Where every phrase is its own class, turns are of one row each, and what is left is the order
# by likelihood.
_PHRASE = r"""array_to_string(list_filter(
    string_split(regexp_replace(lower(nfc_normalize(action)), '[^\p{L}\p{M}\p{N}]+', ' ', 'g'), ' '),
    lambda word: word NOT IN ('', 'a', 'an', 'the')), ' ')"""

_CLASS = {
    "label": "class_label",
    "phrase": "phrase",
    # Labels and phrases side by side in one data set would be two partitions of it at once.
    "auto": "CASE WHEN bool_and(class_label IS NOT NULL) OVER (PARTITION BY dataset) THEN class_label ELSE phrase END",
}

_STATEMENT = """
WITH labels AS (  -- a video that two processes cataloged at once has two rows
    SELECT video_id, min(class_label) AS class_label FROM videos GROUP BY video_id
), labeled AS (
    SELECT triples.*, labels.class_label FROM triples LEFT JOIN labels USING (video_id)
), candidates AS (
    SELECT triple_id, video_id, dataset, action, class_label, {phrase} AS phrase,
        CASE WHEN isfinite(confidence) THEN confidence END AS likelihood
    FROM labeled
    WHERE {conditions}
), classed AS (
    SELECT *, {class_} AS class FROM candidates
), turns AS (
    SELECT *, row_number() OVER (PARTITION BY dataset, class ORDER BY likelihood DESC NULLS LAST, triple_id) AS turn
    FROM classed
)
SELECT triple_id, video_id, dataset, action, class,
    row_number() OVER (PARTITION BY dataset ORDER BY turn, likelihood DESC NULLS LAST, triple_id) AS rank
FROM turns
QUALIFY rank <= $most
ORDER BY dataset, rank
"""


class SelectionSettings(Settings):
    """Which triples may be chosen, and how many are. An empty list of labelers, data sets or splits means all."""

    labelers: tuple[str, ...] = Field((), description="Labeler ids, such as human:aurora. Default: all.")
    datasets: tuple[str, ...] = Field((), description="Data sets. Default: all.")
    splits: tuple[str, ...] = Field(("train",), description="Splits: train, validation, test.")
    where: str | None = Field(None, description="SQL condition on the columns of triples, and class_label.")
    per_dataset: int | None = Field(7000, ge=1, description="Triples of a data set (the paper's K). None: all.")
    classes: Literal["auto", "label", "phrase"] = Field(
        "auto",
        description="Classes: label (class_label of the video) or phrase (words of the action). auto: label, if any.",
    )


def select_triples(lake: Lake, settings: SelectionSettings, versions: Mapping[str, int] | None = None) -> pa.Table:
    """Choose triples at given versions of the tables `triples` and `videos` (absent: the newest).

    Returns columns triple_id, video_id, dataset, action, class and rank (from 1, in the order of choice within the data
    set), sorted by data set and rank; the same rows whatever the order in which they are stored. Pixels are not read.

    Raises:
        Refused: `where` is not a condition on the columns, a version is gone, or `classes` is "label" and a triple's
            video has none.
    """
    tables = {name: _without_pixels(lake, name, (versions or {}).get(name)) for name in _TABLES}
    return choose(tables["triples"], tables["videos"], settings)


def at_version(lake: Lake, name: str, version: int | None) -> DeltaTable:
    """A handle on a version of a table, the newest when none is given.

    Raises:
        Refused: there is no such version.
    """
    table = lake.table(name)
    if version is not None and version != table.version():
        newest = table.version()
        try:
            table.load_as_version(version)
        except DeltaError:
            raise Refused(f"{name} has no version {version}: the newest is {newest}") from None
    return table


def choose(triples: pads.Dataset | pa.Table, videos: pads.Dataset | pa.Table, settings: SelectionSettings) -> pa.Table:
    """`select_triples` over the rows of two tables."""
    conditions = ["true"]
    parameters: dict[str, object] = {"most": settings.per_dataset if settings.per_dataset is not None else 2**62}
    for column, values in (
        ("labeler_id", settings.labelers),
        ("dataset", settings.datasets),
        ("split", settings.splits),
    ):
        if values:
            conditions.append(f"list_contains(${column}, {column})")
            parameters[column] = list(values)
    if settings.where:
        conditions.append(f"({settings.where}\n)")
    statement = _STATEMENT.format(phrase=_PHRASE, class_=_CLASS[settings.classes], conditions=" AND ".join(conditions))
    with duckdb.connect(
        config={"enable_external_access": "false", "python_enable_replacements": "false"}
    ) as connection:
        connection.register("triples", triples)
        connection.register("videos", videos)
        try:
            chosen: pa.Table = connection.sql(statement, params=parameters).to_arrow_table()
        except duckdb.Error as error:
            raise _explained(error, settings) from None
    if chosen["class"].null_count:
        unlabeled = sorted({row["dataset"] for row in chosen.to_pylist() if row["class"] is None})
        raise Refused(f"videos of {', '.join(unlabeled)} have no class_label: use classes = phrase, or auto")
    return chosen


def _without_pixels(lake: Lake, name: str, version: int | None) -> pads.Dataset:
    """A table without its pixels, so that nothing can read them."""
    dataset = lake.dataset(name, at_version(lake, name, version))
    return dataset.replace_schema(pa.schema([field for field in dataset.schema if field.name not in _PIXELS]))


def _explained(error: Exception, settings: SelectionSettings) -> Exception:
    reason = str(error)
    if "registered as" not in reason:
        return Refused(
            f"where {settings.where!r}: {sql_reason(error, 200)}; it is a SQL condition on the columns of triples"
        )
    # What Arrow meets while it reads reaches DuckDB as text.
    if "No such file" in reason or "does not exist" in reason:
        return Refused("files of this version of triples or videos were vacuumed: choose a newer version")
    return error
