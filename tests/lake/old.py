"""A lake of schema version 1.

`data/lake-v1.tar.xz` was made at commit f6b8334 (2026-11-29), the last whose tables had the columns `agreement` and
`cycle`: `tests.faults.lakes.template(folder)`, and a row in `reviews` for each of the first three triples. Its videos
are not there any more.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

from lake.storage import is_s3, join
from lake.tables import Lake

_ARCHIVE = Path(__file__).parent / "data" / "lake-v1.tar.xz"
TABLES = ("videos", "triples", "rejections", "progress", "failures", "reviews", "tokens", "runs")


def old_lake(folder: Path, uri: str | None = None) -> Lake:
    """Unpack the lake into a folder, or by way of it into a store."""
    with tarfile.open(_ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / "lake"
    lake = Lake(uri or str(unpacked))
    if is_s3(lake.uri):
        for path in sorted(path for path in unpacked.rglob("*") if path.is_file()):
            lake.storage.put(join(lake.uri, str(path.relative_to(unpacked))), path.read_bytes())
    return lake


def content(lake: Lake) -> dict[str, list[dict[str, Any]]]:
    """Every row of the lake without the columns that it got later; of its runs those that it came with."""
    found = {}
    for name in TABLES:
        rows = lake.dataset(name).to_table().to_pylist()
        rows = [{key: value for key, value in row.items() if key != "license"} for row in rows]
        found[name] = sorted(rows, key=repr)
    ends = {row["run_id"] for row in found["runs"] if row["kind"] in ("upgrade", "maintain")}
    found["runs"] = [row for row in found["runs"] if row["run_id"] not in ends]
    return found
