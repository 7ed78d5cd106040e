"""`worldlake ingest` of data sets that people labeled."""

from __future__ import annotations

from lake.tables import Lake
from worldlake import console
from worldlake.ingested import any_failed, in_words


def labeled_command(
    lake: Lake,
    sources: list[str],
    layout: str,
    dataset: str | None,
    split: str | None,
    image_size: int,
    *,
    retry_failed: bool,
    bring_back: bool,
    strict: bool,
    json: bool,
) -> int:
    """Ingest labeled rows and say what became of them; the exit code."""
    from labeling.human_labels import LabeledOptions, ingest_labeled

    options = LabeledOptions(dataset, split, image_size, retry_failed, bring_back)
    with console.counter("ingest") as counter:
        videos, rows = ingest_labeled(
            lake, sources, layout, options, lambda counts: counter(counts.triples + counts.failed, vars(counts))
        )
    if json:
        console.print_json({**vars(videos), "rows": vars(rows)})
    else:
        if videos.listed:
            console.out.print("\n".join(in_words(videos, lake.uri)), markup=False)
        console.out.print(
            f"{rows.listed:,} rows listed = {rows.triples:,} triples + {rows.known:,} known + {rows.failed:,} failed"
        )
    return 3 if strict and (any_failed(videos) or rows.failed) else 0
