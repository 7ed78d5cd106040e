"""Which videos are finished, failed or pending under a labeler: an anti-join in the lake, never a marker file."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from labeling.stream import WORK
from lake import tombstones
from lake.errors import Refused
from lake.sql import sql_reason
from lake.tables import Lake
from lake.text import counted

MAX_ATTEMPTS = 3
"""Runs in which a transient failure is tried before it counts as failed."""

_STATES = """
CREATE TEMP TABLE states AS
WITH current_videos AS (  -- a uri whose bytes changed is its newest video; what was made of the older one stays valid
    SELECT * FROM videos ANTI JOIN forgotten ON left(sha256(uri || chr(0)), 32) = uri_key
    QUALIFY row_number() OVER (PARTITION BY uri ORDER BY added_at DESC, video_id) = 1
), finished AS (  -- the newest row counts: --retry-failed finishes a video again
    SELECT * FROM progress WHERE labeler_id = $labeler
    QUALIFY row_number() OVER (PARTITION BY video_id ORDER BY finished_at DESC) = 1
), lost AS (
    SELECT video_id, max(attempt) AS attempts, bool_or(NOT transient) OR max(attempt) >= $max_attempts AS final
    FROM failures WHERE labeler_id = $labeler AND scope = 'video' GROUP BY video_id
)
SELECT v.*, CASE WHEN f.video_id IS NOT NULL THEN 'finished' WHEN l.final THEN 'failed' ELSE 'pending' END AS state,
       coalesce(l.attempts, 0) AS attempts, f.sampled, f.failed
FROM current_videos v LEFT JOIN finished f USING (video_id) LEFT JOIN lost l USING (video_id)
"""


def video_states(lake: Lake, labeler_id: str) -> duckdb.DuckDBPyConnection:
    """A connection with the lake's tables and a table `states`: every current video with its `state` under a labeler
    (finished, failed or pending), the `attempts` that failed, and, when finished, its pairs `sampled` and `failed`."""
    connection = duckdb.connect()
    for name in ("videos", "progress", "failures", "triples", "rejections"):
        connection.register(name, lake.dataset(name))
    # A `forget` that is under way has entombed videos that it has yet to delete.
    connection.register("forgotten", pa.table({"uri_key": pa.array(sorted(tombstones.keys(lake)), pa.string())}))
    connection.execute(_STATES, {"labeler": labeler_id, "max_attempts": MAX_ATTEMPTS})
    return connection


def list_work(lake: Lake, labeler_id: str, *, where: str | None, limit: int | None, retry_failed: bool) -> pa.Table:
    """Videos to label now (`stream.WORK` without decided pairs), oldest first.

    `where` is a SQL condition on the columns of `videos`. With `retry_failed` also videos that failed, and finished
    videos of which a pair failed.

    Raises:
        Refused: `where` is not a condition on `videos`, or no video of the lake satisfies it.
    """
    wanted = "state = 'pending'" + (" OR state = 'failed' OR failed > 0" if retry_failed else "")
    connection = video_states(lake, labeler_id)
    states = connection.table("states")
    if where is not None:
        states = _matching(connection, states, where)
    rows = states.filter(wanted).order("added_at, uri").limit(limit if limit is not None else 2**62)
    table = rows.project(
        "video_id, uri, etag, dataset, split, (attempts + 1)::INTEGER AS attempt, duration_s, []::VARCHAR[] AS decided"
    ).to_arrow_table()
    return table.cast(WORK)


def why_no_work(lake: Lake, labeler_id: str, *, where: str | None) -> str:
    """Say why `list_work` lists no video."""
    connection = video_states(lake, labeler_id)
    states = connection.table("states")
    if not len(states):
        if lake.dataset("failures").count_rows(filter=pc.field("stage") == "probe"):
            return "no video could be read; `worldlake status` names the reasons"
        return "the lake holds no video; add some with `worldlake ingest`"
    if where is not None:
        states = _matching(connection, states, where)
    failed = len(states.filter("state = 'failed'"))
    but = f", but for {failed:,} that failed: --retry-failed tries again" if failed else ""
    return f"every video that was asked for is labeled already (labeler {labeler_id}){but}"


def _matching(
    connection: duckdb.DuckDBPyConnection, states: duckdb.DuckDBPyRelation, where: str
) -> duckdb.DuckDBPyRelation:
    try:
        # Computed here and now: a condition may fail on a value only, as a cast does.
        states.filter(where).create("matching")
    except duckdb.Error as error:
        raise Refused(
            f"--where {where!r}: {sql_reason(error)}; it is a SQL condition on the columns of `videos`"
        ) from None
    matching = connection.table("matching")
    if len(states) and not len(matching):
        raise Refused(f"--where {where!r} matches no video; the lake has {counted(len(states), 'video')}")
    return matching
