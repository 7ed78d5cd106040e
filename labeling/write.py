"""The last stage on the workers: verified pairs become Parquet files, and a report goes to the driver."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, fields
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from labeling.accounting import End, Report
from labeling.stream import VERIFIED
from lake.failures import Failure
from lake.metrics import STAGE_SECONDS
from lake.schemas import TABLES
from lake.store_errors import final_error
from lake.tables import DataFile, Lake, now

_OF_FAILURE = [field.name for field in fields(Failure) if field.name in VERIFIED.names]


@dataclass(frozen=True)
class Write:
    """Accepted pairs into `triples`, the rest into `rejections`; nothing is visible until the driver commits it."""

    lake: Lake
    run_id: str
    labeler_id: str
    policy_id: str
    decoder: str
    source: Literal["label", "live"] = "label"

    def __call__(self, verified: pa.Table) -> pa.Table:
        """As `report`, for Ray Data: one row that holds the pickled report."""
        return pa.table({"report": [pickle.dumps(self.report(verified))]})

    def report(self, verified: pa.Table) -> Report:
        """Write the rows of a block (`VERIFIED`).

        Raises Unavailable or Refused where the lake cannot be written and no retry can help.
        """
        with STAGE_SECONDS.timed(stage="write", source=self.source):
            try:
                return self._report(verified)
            except Exception as error:
                if why := final_error(error, self.lake.uri):
                    raise why from error
                raise

    def _report(self, verified: pa.Table) -> Report:
        failed = pc.is_valid(verified["error_type"])
        decided = verified.filter(pc.and_not(pc.is_valid(verified["triple_id"]), failed))
        is_accepted = pc.equal(pc.list_value_length(decided["reasons"]), 0)
        accepted, rejected = decided.filter(is_accepted), decided.filter(pc.invert(is_accepted))
        return Report(
            files=[
                self._write(rows, name) for name, rows in (("triples", accepted), ("rejections", rejected)) if len(rows)
            ],
            accepted=_pairs(accepted),
            rejected=_pairs(rejected),
            failures=self._failures(verified.filter(failed)),
            ends=_ends(verified),
        )

    def _write(self, rows: pa.Table, name: str) -> DataFile:
        same = {
            "run_id": self.run_id,
            "labeler_id": self.labeler_id,
            "policy_id": self.policy_id,
            "labeled_at": now(),
        }
        columns = []
        for field in TABLES[name]:
            if field.name in same:
                columns.append(pa.repeat(pa.scalar(same[field.name], field.type), len(rows)))
            elif field.name in rows.schema.names:
                columns.append(rows[field.name].cast(field.type))
            else:
                columns.append(pa.nulls(len(rows), field.type))
        return self.lake.write_file(pa.Table.from_arrays(columns, schema=TABLES[name]), name, self.run_id)

    def _failures(self, rows: pa.Table) -> list[Failure]:
        same: dict[str, Any] = {"labeler_id": self.labeler_id, "run_id": self.run_id, "decoder": self.decoder}
        return [Failure(**row, **same) for row in rows.select(_OF_FAILURE).to_pylist()]


def _pairs(rows: pa.Table) -> list[tuple[str, str]]:
    return list(zip(rows["video_id"].to_pylist(), rows["triple_id"].to_pylist(), strict=True))


def _ends(rows: pa.Table) -> list[End]:
    ends = rows.filter(pc.is_valid(rows["sampled"])).select(End._fields)
    return [End(**row) for row in ends.to_pylist()]
