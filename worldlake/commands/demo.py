"""`worldlake demo`."""

from __future__ import annotations

import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lake.errors import Refused
from worldlake import console
from worldlake.extras import needed_by
from worldlake.options import ConfigFile, Json, number


def demo(
    *,
    folder: Annotated[Path, Parameter(help="Folder for the sample videos, the lake and the report.")] = Path("demo"),
    videos: Annotated[list[Path] | None, Parameter(help="Video files or folders of yours; repeat for several.")] = None,
    clips: Annotated[
        int | None, Parameter(validator=number(1, 10_000), help="Sample clips to write. Default: 24.")
    ] = None,
    seed: Annotated[int, Parameter(validator=number(0, 50_000), help="Seed of the sample clips.")] = 0,
    full: Annotated[
        bool, Parameter(help="Also train, from a few labeled pairs to a world model; takes ten minutes.")
    ] = False,
    json: Json = False,
    config: ConfigFile = None,
) -> int:
    """Run the whole loop here: write sample videos, label them, query the tables, and write a report to look at.

    Needs no cluster, no network and no GPU. Running it again resumes.

    With --full the builtin models forget what actions are called. A few labeled clips teach the dynamics model, which
    labels the others; a world model trained on what was verified is compared with one trained on those few alone.
    """
    # With --json standard output holds the document and nothing else.
    with redirect_stdout(sys.stderr) if json else nullcontext():
        if full:
            if videos or clips:
                raise Refused("--full has clips of its own: leave out --videos and --clips")
            with needed_by("demo --full"):
                from worldlake.full_demo import run_full_demo
            result = run_full_demo(folder / "full", seed)
        else:
            from worldlake.demo import run_demo

            result = run_demo(folder, videos or [], clips or 24, seed)
    if json:
        console.print_json(result)
    return 0
