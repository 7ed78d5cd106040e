"""`worldlake label`."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from cluster.signals import draining
from labeling.settings import RunSettings
from lake.storage import StorageConfig
from worldlake import console
from worldlake.api import ingest
from worldlake.api import label as run_label
from worldlake.commands.ingest import any_failed
from worldlake.commands.ingest import in_words as ingest_in_words
from worldlake.options import (
    RESOURCES,
    SELECTION,
    VERIFICATION,
    ConfigFile,
    Json,
    LakeUri,
    Model,
    ModelOptions,
    Sampling,
    SamplingOptions,
    SourceStorage,
    TakeOver,
    filled,
    number,
)

if TYPE_CHECKING:
    from labeling.run import Summary

_REJECTED = (
    "SELECT array_to_string(reasons, ' + ') AS rejected_by, count(*) AS pairs FROM rejections "
    "WHERE run_id = '{}' GROUP BY ALL ORDER BY pairs DESC"
)


def label(
    sources: Annotated[
        list[str] | None,
        Parameter(help="Ingest these first. Then every pending video is labeled, not only these."),
    ] = None,
    *,
    lake: LakeUri,
    where: Annotated[
        str | None,
        Parameter(
            group=SELECTION,
            validator=filled,
            help="SQL condition on the table videos, such as \"dataset = 'ucf101'\".",
        ),
    ] = None,
    limit: Annotated[
        int | None, Parameter(group=SELECTION, validator=number(1, 2**62), help="Stop after N videos.")
    ] = None,
    max_hours: Annotated[
        float | None, Parameter(group=SELECTION, validator=number(0), help="Stop gracefully after N hours.")
    ] = None,
    retry_failed: Annotated[bool, Parameter(group=SELECTION, help="Also try again what failed.")] = False,
    model: Model = ModelOptions(),
    sampling: Sampling = SamplingOptions(),
    policy: Annotated[
        str | None,
        Parameter(
            group=VERIFICATION,
            validator=filled,
            help="YAML file of thresholds, or builtin or default. Default: by model.",
        ),
    ] = None,
    strict: Annotated[
        bool, Parameter(group=VERIFICATION, help="Exit with 3 when a pair, a span, or a video failed.")
    ] = False,
    run: Annotated[RunSettings, Parameter(name="*", group=RESOURCES)] = RunSettings(),
    take_over: TakeOver = False,
    storage: SourceStorage = StorageConfig(),
    json: Json = False,
    config: ConfigFile = None,
) -> int:
    """Label every pending video: sample frame pairs, name the action, verify, write, and commit while it runs.

    Ctrl-C or SIGTERM drains: what was begun is finished and committed. A second one ends at once. The same command
    resumes. Ray runs on this machine, or on the cluster of RAY_ADDRESS.
    """
    from lake.tables import Lake

    target = Lake(lake, storage)
    unread = False
    if sources:
        with console.counter("ingest") as counter:
            counts = ingest(target, sources, retry_failed=retry_failed, progress=counter).videos
        unread = any_failed(counts)
        for line in ingest_in_words(counts):
            console.log.info("%s", line)
    with draining(max_hours) as stop, console.counter("label", unit="video") as counter:
        summary = run_label(
            target,
            model=model,
            sampling=sampling,
            policy=policy,
            run=run,
            where=where,
            limit=limit,
            retry_failed=retry_failed,
            take_over=take_over,
            stop=stop,
            progress=lambda done, counts: show(done, counts, counter),
        )
    if json:
        console.print_json(vars(summary))
    else:
        console.out.print("\n".join(in_words(summary, target.uri)), markup=False)
    failed = sum(summary.counts[name] for name in ("failed", "spans_failed", "videos_failed"))
    return 3 if strict and (unread or failed) else 0


def in_words(summary: Summary, lake: str) -> list[str]:
    """Return the summary as a sentence, and the command that lists why pairs were rejected."""
    lines = [summary.text()]
    if summary.counts["rejected"]:
        lines.append(f'why rejected: worldlake sql "{_REJECTED.format(summary.run_id)}" --lake {shlex.quote(lake)}')
    return lines


def show(done: int, counts: dict[str, Any], counter: console.Counter) -> None:
    """Show on a counter of videos how far a run is."""
    # `done of the total` says how many are finished and how many are left.
    others = {name: count for name, count in counts.items() if name not in ("videos_finished", "videos_pending")}
    counter(done, others, done + counts["videos_pending"])
