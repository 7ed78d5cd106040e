"""The demo's report: one HTML file with the pairs as pictures."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import jinja2
import pyarrow.compute as pc

from labeling.decoding import Cut, Gap, open_video
from lake.errors import DecodeError
from lake.scores import NAMES, SCORES
from lake.sql import query
from lake.tables import Lake
from worldlake.accuracy import Judged, Share

# Of each verdict and data set: enough to see what it does, few enough to look at.
_SHOWN = 24
_SIDE = 64
_COLUMNS = ["triple_id", "uri", "dataset", "obs_pts", "next_pts", "obs_time_s", "next_time_s", "action"]


def write_report(
    path: Path, lake: Lake, labeler_id: str, status: dict[str, Any], figures: dict[str, Any], judged: list[Judged]
) -> None:
    """Write the report of a labeler's work to `path`; it needs nothing but a browser."""
    truth = {(pair.row["uri"], pair.row["obs_pts"], pair.row["next_pts"]): pair.truth for pair in judged}
    environment = jinja2.Environment(loader=jinja2.PackageLoader("worldlake"), autoescape=True, trim_blocks=True)
    page = environment.get_template("report.html").render(
        labeler=next(one for one in status["labelers"] if one["labeler_id"] == labeler_id),
        shares={name: share for name, share in figures.items() if isinstance(share, Share)},
        auroc=figures["auroc"],
        any_wrong=any(not pair.right for pair in judged if pair.truth is not None),
        acceptance=_acceptance(lake, labeler_id),
        scores=SCORES,
        accepted=_with_truth(_accepted(lake, labeler_id), truth),
        rejected=_with_truth(_rejected(lake, labeler_id), truth),
    )
    path.write_text(page)


def _acceptance(lake: Lake, labeler_id: str) -> list[dict[str, Any]]:
    text = f"""
        WITH pairs AS (
            SELECT dataset, true AS accepted FROM triples WHERE labeler_id = '{labeler_id}'
            UNION ALL SELECT dataset, false FROM rejections WHERE labeler_id = '{labeler_id}')
        SELECT dataset, count(*) AS pairs, count(*) FILTER (accepted) AS accepted FROM pairs GROUP BY dataset ORDER BY 1
    """
    with query(lake, text) as result:
        rows: list[dict[str, Any]] = result.read_all().to_pylist()
    return rows


def _accepted(lake: Lake, labeler_id: str) -> Iterator[dict[str, Any]]:
    rows = lake.dataset("triples").to_table(
        columns=[*_COLUMNS, *NAMES, "obs", "next_obs"], filter=pc.field("labeler_id") == labeler_id
    )
    for row in _some(rows.to_pylist()):
        yield {**row, "obs": _inline(row["obs"]), "next_obs": _inline(row["next_obs"])}


def _rejected(lake: Lake, labeler_id: str) -> Iterator[dict[str, Any]]:
    """`rejections` keeps no pixels; the frames are read from the video again, by their PTS."""
    rows = lake.read("rejections", [*_COLUMNS, *NAMES, "reasons"], pc.field("labeler_id") == labeler_id)
    for row in _some(rows.to_pylist()):
        yield {**row, "obs": _frame(row["uri"], row["obs_pts"]), "next_obs": _frame(row["uri"], row["next_pts"])}


def _some(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    shown: dict[str, int] = {}
    for row in sorted(rows, key=lambda row: row["triple_id"]):
        shown[row["dataset"]] = shown.get(row["dataset"], 0) + 1
        if shown[row["dataset"]] <= _SHOWN:
            yield row


def _with_truth(rows: Iterator[dict[str, Any]], truth: dict[tuple[str, int, int], str | None]) -> list[dict[str, Any]]:
    found = []
    for row in rows:
        key = row["uri"], row["obs_pts"], row["next_pts"]
        known = truth.get(key, "")
        found.append({**row, "name": Path(row["uri"]).name, "known": key in truth, "truth": known})
    return found


def _frame(uri: str, pts: int) -> str | None:
    """A frame to look at; None when the video is no longer there, or no longer what it was."""
    try:
        decoder = open_video(uri, "pyav")
    except (DecodeError, OSError):
        return None
    try:
        frame = next(iter(decoder.read(pts)), None)
        if frame is None or isinstance(frame, Gap | Cut):
            return None
        image = cv2.cvtColor(frame.square(_SIDE), cv2.COLOR_RGB2BGR)
    except DecodeError:
        return None
    finally:
        decoder.close()
    return _inline(cv2.imencode(".jpg", image)[1].tobytes())


def _inline(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
