"""Contents of a lake and pending work, with sums that balance."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from labeling.pending import video_states
from lake import tombstones
from lake.runs import RunState, states
from lake.storage import normalize
from lake.tables import Lake
from lake.text import counted
from worldlake import console
from worldlake.unread import why_unread


def lake_status(lake: Lake) -> dict[str, Any]:
    """Videos, pairs and runs of every labeler of a lake, counted from the tables themselves."""
    every_run = states(lake)
    runs = [run for run in every_run if run.kind == "label"]
    labelers = dict.fromkeys(run.labeler_id for run in runs if run.labeler_id)
    return {
        "lake": lake.uri,
        "videos": lake.dataset("videos").count_rows(),
        "unread": _unread(lake, every_run),
        "forgotten": len(tombstones.keys(lake)),
        "labelers": [
            _labeler(lake, labeler_id, [run for run in runs if run.labeler_id == labeler_id]) for labeler_id in labelers
        ],
        "labeled_by_people": _labeled_by_people(lake),
    }


def _unread(lake: Lake, runs: list[RunState]) -> int:
    """Files that could not be read and sources that could not be listed, unless a later ingest could."""
    failed = lake.read("failures", ["uri", "stage", "failed_at"], pc.field("stage").isin(["probe", "list"]))
    newest: dict[tuple[str, str], datetime] = {}
    for row in failed.to_pylist():
        key = row["stage"], row["uri"]
        newest[key] = max(newest.get(key, row["failed_at"]), row["failed_at"])
    read: dict[tuple[str, str], datetime] = {}
    among = pc.field("uri").isin(pa.array([uri for _, uri in newest], pa.string()))
    for row in lake.read("videos", ["uri", "added_at"], among).to_pylist():
        key = "probe", row["uri"]
        read[key] = max(read.get(key, row["added_at"]), row["added_at"])
    for run in runs:
        if run.kind == "ingest" and run.status == "finished":
            read |= {("list", normalize(uri)): run.started_at for uri in run.config.get("sources", ())}
    return sum(key not in read or read[key] < failed_at for key, failed_at in newest.items())


def _labeled_by_people(lake: Lake) -> dict[str, int]:
    """Triples by the labeler `human:<data set>` whose manifest they come from."""
    theirs = lake.read("triples", ["labeler_id"], pc.starts_with(pc.field("labeler_id"), "human:"))
    return dict(sorted(Counter(theirs["labeler_id"].to_pylist()).items()))


def _labeler(lake: Lake, labeler_id: str, runs: list[RunState]) -> dict[str, Any]:
    query = video_states(lake, labeler_id)
    by_state = dict(query.execute("SELECT state, count(*) FROM states GROUP BY state").fetchall())
    # Pairs of finished videos: sampled by `progress`, the others by the rows of their tables. A later decision about a
    # pair supersedes its failure, also while the video is being finished again.
    counted = query.execute(
        """
        WITH done AS (SELECT * FROM states WHERE state = 'finished'),
            accepted AS (SELECT triple_id FROM triples SEMI JOIN done USING (video_id) WHERE labeler_id = $labeler),
            rejected AS (SELECT triple_id FROM rejections SEMI JOIN done USING (video_id) WHERE labeler_id = $labeler),
            failed AS (
                SELECT DISTINCT triple_id FROM failures SEMI JOIN done USING (video_id)
                WHERE labeler_id = $labeler AND scope = 'pair'
            )
        SELECT (SELECT coalesce(sum(sampled), 0)::BIGINT FROM done),
            (SELECT count(*) FROM failed ANTI JOIN accepted USING (triple_id) ANTI JOIN rejected USING (triple_id)),
            (SELECT count(*) FROM accepted),
            (SELECT count(*) FROM rejected)
        """,
        {"labeler": labeler_id},
    ).fetchone()
    pairs = dict(zip(("sampled", "failed", "accepted", "rejected"), counted or (), strict=True))
    videos = {state: by_state.get(state, 0) for state in ("finished", "failed", "pending")}
    return {
        "labeler_id": labeler_id,
        "policy_id": runs[-1].policy_id,
        "videos": {"listed": sum(by_state.values()), **videos},
        "pairs": pairs,
        "balances": pairs["sampled"] == pairs["accepted"] + pairs["rejected"] + pairs["failed"],
        "runs": [_run(run) for run in runs],
    }


def _run(run: RunState) -> dict[str, Any]:
    seconds = (run.heartbeat_at - run.started_at).total_seconds()
    pairs = run.counts.get("accepted", 0) + run.counts.get("rejected", 0)
    return {
        "run_id": run.run_id,
        # A run that neither ended nor beats is one whose process was killed.
        "status": "killed" if run.status == "running" and not run.live else run.status,
        "started_at": run.started_at,
        "seconds": round(seconds, 1),
        "pairs_per_s": round(pairs / seconds, 1) if seconds else None,
        "counts": run.counts,
    }


def print_status(found: dict[str, Any]) -> None:
    """`lake_status` as text."""
    out = console.out
    out.print(f"{found['lake']}: {counted(found['videos'], 'video')}", markup=False)
    if found["unread"]:
        why = why_unread(found["lake"])
        unread = counted(found["unread"], "file or source", "files or sources")
        out.print(f"{unread} could not be read; why: {why}", markup=False)
    if found["forgotten"]:
        out.print(f"`worldlake ingest` skips {counted(found['forgotten'], 'deleted video')}")
    for labeler in found["labelers"]:
        videos, pairs = labeler["videos"], labeler["pairs"]
        out.print(f"\nlabeler {labeler['labeler_id']}, policy {labeler['policy_id']}")
        out.print(
            "  videos: {listed:,} listed = {finished:,} finished + {failed:,} failed + {pending:,} pending".format(
                **videos
            )
        )
        out.print(
            "  pairs:  {sampled:,} sampled = {accepted:,} accepted + {rejected:,} rejected + {failed:,} failed".format(
                **pairs
            )
        )
        if not labeler["balances"]:
            remedy = f"look with `worldlake repair --check --lake {found['lake']}`"
            out.print(f"  THE SUMS DO NOT BALANCE: {remedy}", markup=False)
        console.print_table(
            "  runs",
            # When it started is in the run's name; with a column for it eighty columns are too few.
            ("run", "status", "seconds", "pairs/s", "accepted", "rejected", "failed"),
            [
                (
                    run["run_id"],
                    run["status"],
                    run["seconds"],
                    run["pairs_per_s"],
                    *(run["counts"].get(name, 0) for name in ("accepted", "rejected", "failed")),
                )
                for run in labeler["runs"]
            ],
        )
    for labeler_id, count in found["labeled_by_people"].items():
        out.print(f"\n{labeler_id}: {counted(count, 'triple')}", markup=False)
    if not found["labelers"]:
        out.print("nothing is labeled yet: worldlake label --lake " + found["lake"], markup=False)
