"""`worldlake ingest`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from lake.storage import StorageConfig
from lake.text import counted
from worldlake import console
from worldlake.api import ingest as run_ingest
from worldlake.options import ConfigFile, Json, LakeUri, SourceStorage, filled, number

if TYPE_CHECKING:
    from lake.catalog import IngestCounts


def ingest(
    sources: Annotated[list[str], Parameter(help="Folders, files or s3://bucket/prefix with videos.")],
    *,
    lake: LakeUri,
    dataset: Annotated[
        str | None, Parameter(validator=filled, help="Data set name. Default: taken from the path.")
    ] = None,
    format: Annotated[
        str,
        Parameter(
            help="auto, folder, kinetics, ucf101, moments (what paths say); something, epic-kitchens, aurora, "
            "aurora-bench (labeled pairs); or a mapping of your own in a .yaml file."
        ),
    ] = "auto",
    split: Annotated[
        str | None, Parameter(help="train, validation or test for all. Default: by path, else 90/5/5 by hash.")
    ] = None,
    image_size: Annotated[
        int, Parameter(validator=number(16, 4096), help="Side of the stored images of labeled pairs in pixels.")
    ] = 256,
    retry_failed: Annotated[bool, Parameter(help="Try again what failed before.")] = False,
    forgotten: Annotated[bool, Parameter(help="Also take in what `worldlake forget` deleted from this lake.")] = False,
    strict: Annotated[bool, Parameter(help="Exit with 3 when a file or a row failed, now or before.")] = False,
    storage: SourceStorage = StorageConfig(),
    json: Json = False,
    config: ConfigFile = None,
) -> int:
    """Catalog videos: list them, read their headers (not the files), and add new ones to the table `videos`.

    Rows that people labeled also become triples, of the labeler human:<data set>. Running it again adds only what is
    new or changed. What cannot be read is in the table `failures` with its reason.
    """
    from lake.tables import Lake

    target = Lake(lake, storage)
    with console.counter("ingest") as counter:
        done = run_ingest(
            target,
            sources,
            dataset=dataset,
            format=format,
            split=split,
            image_size=image_size,
            retry_failed=retry_failed,
            forgotten=forgotten,
            progress=counter,
        )
    videos, rows = done.videos, done.rows
    if json:
        console.print_json({**vars(videos), **({"rows": vars(rows)} if rows else {})})
    else:
        if videos.listed:
            console.out.print("\n".join(in_words(videos)), markup=False)
        if rows:
            known = f"{counted(rows.triples, 'triple')} + {rows.known:,} known"
            console.out.print(f"{counted(rows.listed, 'row')} listed = {known} + {rows.failed:,} failed")
    return 3 if strict and (any_failed(videos) or (rows and rows.failed)) else 0


def in_words(counts: IngestCounts) -> list[str]:
    """Return the counts as a sentence, and a line for videos that were deleted; `worldlake.unread` has the others."""
    # What was unreadable or deleted before is known as well, but is not among the videos.
    known = counts.known - counts.known_failed - counts.forgotten
    others = {"unreadable": counts.failed, "unreadable before": counts.known_failed, "deleted before": counts.forgotten}
    sums = "".join(f" + {count:,} {name}" for name, count in others.items() if count)
    lines = [
        f"{counted(counts.listed, 'file')} listed = {counts.new:,} new + {known:,} known{sums}"
        f" ({counted(counts.skipped, 'other file')} skipped)"
    ]
    if counts.forgotten:
        lines.append(
            f"skipped {counted(counts.forgotten, 'deleted video')}; `worldlake ingest --forgotten` does not skip"
        )
    return lines


def any_failed(counts: IngestCounts) -> bool:
    """Return whether a video of the sources cannot be read, now or when it was tried before."""
    return bool(counts.failed or counts.known_failed)
