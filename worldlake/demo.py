"""`worldlake demo`: the whole loop on this machine, with a report to look at."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from lake.catalog import ingest
from lake.errors import Refused
from lake.sql import query
from lake.tables import Lake
from sample_world.clips import GroundTruth, write_folder
from worldlake import console
from worldlake.accuracy import Share, judge, summary
from worldlake.api import label
from worldlake.commands.label import show
from worldlake.report import write_report
from worldlake.status import lake_status, print_status

# Clips that the builtin model was not trained on: see `sample_world.clips.FIRST_TRAINING_SEED`.
FIRST_SEED = 5_000_000

QUERIES = {
    "What was labeled, and how sure": """
        SELECT action, count(*) AS pairs, round(avg(confidence), 3) AS confidence, round(avg(motion), 4) AS motion
        FROM current GROUP BY action ORDER BY pairs DESC, action LIMIT 8""",
    "Why pairs were rejected": """
        SELECT dataset, array_to_string(reasons, ' + ') AS rejected_by, count(*) AS pairs
        FROM rejections GROUP BY ALL ORDER BY pairs DESC, rejected_by LIMIT 8""",
    "What another threshold of confidence would keep": """
        WITH pairs AS (
            SELECT confidence, [] AS others FROM triples
            UNION ALL SELECT confidence, list_filter(reasons, lambda reason: reason <> 'confidence') FROM rejections)
        SELECT threshold AS confidence, count(*) FILTER (confidence >= threshold AND len(others) = 0) AS kept,
            count(*) AS pairs
        FROM pairs, (VALUES (-0.5), (-0.1), (-0.02), (-0.005)) AS t(threshold) GROUP BY threshold ORDER BY threshold""",
}


def run_demo(folder: Path, videos: list[Path], clips: int, seed: int) -> dict[str, Any]:
    """Write clips, catalog, label, query, report; returns the figures of the report."""
    started = time.monotonic()
    for path in videos:
        if not path.exists():
            raise Refused(f"--videos {path} does not exist: give video files or folders")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"--folder {folder}: {error.strerror}: name a folder to write to") from None
    sample = folder / "videos"
    truth = _sample_clips(sample, clips, seed)
    lake = Lake(str(folder / "lake"))
    ingest(lake, [str(sample)], dataset="sample-world", layout="folder")
    if videos:
        ingest(lake, [str(path) for path in videos], dataset="your-videos", layout="folder")
    with console.counter("label", unit="video") as counter:
        run = label(lake, progress=lambda done, counts: show(done, counts, counter), advise=False)
    console.out.print(run.text(), markup=False)
    found = lake_status(lake)
    print_status(found)
    judged = judge(lake, run.labeler_id, truth)
    figures = summary(judged)
    _print_figures(figures)
    _print_queries(lake)
    report = folder / "report.html"
    write_report(report, lake, run.labeler_id, found, figures, judged)
    seconds = time.monotonic() - started
    console.out.print(f"\ndone in {seconds:.0f} s; open {report.resolve()} in a browser", markup=False)
    return {"status": found, "figures": _plain(figures), "report": str(report.resolve()), "seconds": round(seconds, 1)}


def _sample_clips(folder: Path, clips: int, seed: int) -> GroundTruth:
    first = FIRST_SEED + seed * 10_000
    wanted = {f"sample-{number:06d}.mp4" for number in range(first, first + clips)}
    found = {path.name for path in folder.glob("*.mp4")}
    if found == wanted and (folder / "ground_truth.json").exists():
        return GroundTruth(folder)
    if not found <= wanted:
        raise Refused(f"{folder} holds the clips of another demo: remove it, or choose another --folder")
    with console.counter("write sample clips"):
        write_folder(folder, range(first, first + clips))
    return GroundTruth(folder)


def _print_figures(figures: dict[str, Any]) -> None:
    console.print_table(
        "\nagainst the ground truth of the sample world (95 % interval)",
        ("", "share"),
        [(name, share) for name, share in figures.items() if isinstance(share, Share)],
    )
    if all(math.isnan(value) for value in figures["auroc"].values()):
        console.out.print("every label of a pair with one event or none was right, so score quality cannot be measured")
        return
    console.print_table(
        "how well each score tells right labels from wrong ones (AUROC; 0.5 is chance)",
        tuple(figures["auroc"]),
        [tuple(figures["auroc"].values())],
    )


def _print_queries(lake: Lake) -> None:
    for title, text in QUERIES.items():
        with query(lake, text) as result:
            table: pa.Table = result.read_all()
        console.print_table(f"\n{title}", table.schema.names, [tuple(row.values()) for row in table.to_pylist()])
        console.out.print(f'worldlake sql "{" ".join(text.split())}" --lake {lake.uri}', markup=False)


def _plain(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures as JSON has them: no NaN."""
    return {
        name: _plain_share(value)
        if isinstance(value, Share)
        else {score: None if math.isnan(area) else area for score, area in value.items()}
        for name, value in figures.items()
    }


def _plain_share(share: Share) -> dict[str, Any]:
    known = {"share": share.value, "interval": share.interval} if share.total else {"share": None, "interval": None}
    return {**known, "right": share.right, "of": share.total}
