"""Adding to a lake the columns that a newer worldlake has.

Each table gets its columns, then its schema version together with a new fence, so that every writer that was open ends
with one line. What a killed upgrade has done stays, and the next one does the rest.
"""

from __future__ import annotations

from lake.runs import Run, new_run_id, refuse_beside_a_run
from lake.schemas import TABLES
from lake.tables import Lake, is_outdated
from lake.writer import add_columns

KIND = "upgrade"


def upgrade(lake: Lake) -> dict[str, list[str]]:
    """Add the columns that tables lack; returns them by table, of the tables that an older worldlake made.

    Nothing is dropped, and no file is rewritten: rows that are there have null in the new columns.

    Raises:
        Refused: there is no lake at the uri, a newer worldlake wrote it, or a run is alive.
        OSError, DeltaError: a table cannot be written, also after minutes of trying.
    """
    outdated = [name for name in TABLES if is_outdated(lake.table(name), name)]
    if not outdated:
        return {}
    refuse_beside_a_run(lake, KIND)
    # Before the record of this run, which goes there.
    added = {"runs": add_columns(lake, "runs")} if "runs" in outdated else {}
    with Run(lake, new_run_id(), KIND, {}) as run:
        added |= {name: add_columns(lake, name) for name in outdated if name != "runs"}
        run.config |= {"added": added}
    return added
