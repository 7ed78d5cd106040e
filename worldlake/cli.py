"""The command line: `worldlake COMMAND`.

Exit codes: 0 done, 1 crashed and worth retrying, 2 refused, 3 failures recorded and `--strict` given.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import nullcontext, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lake.errors import Refused, WorldlakeError, one_line
from lake.store_errors import damage, final_error
from lake.tables import Lake
from worldlake import console, evaluate, serve, train, upkeep
from worldlake.ingested import any_failed, in_words
from worldlake.options import (
    Anonymous,
    Config,
    Endpoint,
    Json,
    LakeUri,
    Profile,
    Region,
    RequesterPays,
    filled,
    finite,
    open_lake,
    storage,
)

if TYPE_CHECKING:
    from lake.catalog import IngestCounts

# typer carries its own copy of click and exports only this branch of it.
UsageError: Any = typer.BadParameter.__base__

# What a command needs is imported when it runs: torch and Ray take seconds, and `worldlake sql` needs neither.

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Label video lakes: unlabeled video in, verified (obs, action, next_obs) triples in Delta tables out.",
    epilog="Exit codes: 0 done (failures are reported, not fatal), 1 crashed and worth retrying, 2 refused (one line "
    "says why and what to do), 3 failures recorded and --strict given.",
)


def main() -> None:
    """Run the command; every expected error is one line on standard error."""
    console.setup()
    try:
        code = app(standalone_mode=False)
    except UsageError as error:
        command = error.ctx.command_path if error.ctx else "worldlake"
        code = _say(f"{error.format_message()} (see `{command} --help`)", 2)
    except WorldlakeError as error:
        code = _say(str(error), error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        code = _say("interrupted; what was committed stays, the same command goes on from there", 1)
    except SystemExit:
        raise
    except BaseException as error:  # a panic in a library that is written in Rust is no Exception
        if why := final_error(error) or damage(error):
            sys.exit(_say(str(why), why.exit_code))
        if not isinstance(error, Exception):
            # It has written where it was by itself.
            sys.exit(_say(f"crashed ({type(error).__name__}: {error}); please report the command", 1))
        console.log.error("crashed", exc_info=error)
        code = _say(f"crashed ({type(error).__name__}); the same command goes on where this one stopped", 1)
    sys.exit(code or 0)


def _say(message: str, code: int) -> int:
    console.err.print(f"worldlake: {one_line(message)}", markup=False)
    return code


def _version(wanted: bool) -> None:
    if wanted:
        console.out.print(f"worldlake {version('worldlake')}", markup=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    pass


@app.command()
def ingest(
    sources: Annotated[list[str], typer.Argument(help="Folders, files or s3://bucket/prefix with videos.")],
    lake: LakeUri,
    dataset: Annotated[
        str | None, typer.Option(callback=filled, help="Data set name; default: taken from the path.")
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            help="auto, folder, kinetics, ucf101, moments (what paths say); something, epic-kitchens, aurora, "
            "aurora-bench (labeled pairs); or a mapping of your own in a .yaml file."
        ),
    ] = "auto",
    split: Annotated[
        str | None, typer.Option(help="train, validation or test for all; default: path, else 90/5/5 by hash.")
    ] = None,
    image_size: Annotated[
        int, typer.Option(min=16, max=4096, help="Side of obs and next_obs of labeled pairs in pixels.")
    ] = 256,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again what failed before.")] = False,
    forgotten: Annotated[
        bool, typer.Option("--forgotten", help="Also take in what `worldlake forget` deleted from this lake.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 when a file or a row failed, now or before.")
    ] = False,
    endpoint_url: Endpoint = None,
    region: Region = None,
    profile: Profile = None,
    anonymous: Anonymous = None,
    requester_pays: RequesterPays = None,
    json: Json = False,
    config: Config = None,
) -> int:
    """Catalog videos: list them, read their headers (not the files), add what is new to the table `videos`.

    Rows that people labeled also become triples, of the labeler human:<data set>. Running it again adds only what is
    new or changed. What cannot be read is in the table `failures` with its reason.
    """
    from lake.layouts import find_mapping

    target = Lake(lake, storage(endpoint_url, region, profile, anonymous, requester_pays))
    mapping = find_mapping(format)
    if mapping and mapping.is_labeled:
        from worldlake.human_labels import labeled_command

        return labeled_command(
            target, sources, format, dataset, split, image_size,
            retry_failed=retry_failed, bring_back=forgotten, strict=strict, json=json,
        )  # fmt: skip
    counts = _catalog(target, sources, dataset, format, split, retry_failed, bring_back=forgotten)
    if json:
        console.print_json(vars(counts))
    else:
        console.out.print("\n".join(in_words(counts, target.uri)), markup=False)
    return 3 if strict and any_failed(counts) else 0


def _catalog(
    lake: Lake,
    sources: list[str],
    dataset: str | None,
    layout: str,
    split: str | None,
    retry_failed: bool,
    bring_back: bool = False,
) -> IngestCounts:
    from lake.catalog import ingest as ingest_

    with console.counter("ingest") as counter:
        return ingest_(
            lake,
            sources,
            dataset=dataset,
            layout=layout,
            split=split,
            retry_failed=retry_failed,
            bring_back=bring_back,
            on_progress=lambda counts: counter(counts.listed, vars(counts)),
        )


@app.command()
def label(
    lake: LakeUri,
    sources: Annotated[
        list[str] | None,
        typer.Argument(help="Ingest these first. Then everything that is pending is labeled, not only these."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="builtin, hf:<folder>, hf:<owner>/<repository> or s3://<folder>.")
    ] = "builtin",
    revision: Annotated[
        str | None, typer.Option(callback=filled, help="Commit, tag or branch of a repository.")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(callback=filled, help="LoRA adapter: a folder, <owner>/<repository> or s3://<folder>.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="What the model is asked; default: as it was trained, or a sentence that suits most."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest action, in tokens.")] = 32,
    dtype: Annotated[str, typer.Option(help="auto (bfloat16 on GPU, float32 on CPU), float32 or bfloat16.")] = "auto",
    image_size: Annotated[
        int | None, typer.Option(help="Side of obs and next_obs in pixels; default: the model's.")
    ] = None,
    pair_layout: Annotated[
        str, typer.Option(help="auto, images (two images) or video (a video of two frames).")
    ] = "auto",
    batch_size: Annotated[int, typer.Option(help="Pairs that the model sees at once.")] = 64,
    method: Annotated[
        str, typer.Option(help="motion (frames with the most motion) or uniform (every N-th).")
    ] = "motion",
    frames_per_clip: Annotated[
        int | None, typer.Option(help="motion: frames kept of a clip (the paper's K); default: 6.")
    ] = None,
    min_interval: Annotated[
        int | None, typer.Option(help="motion: frames between kept frames (the paper's I); default: 20.")
    ] = None,
    uniform_stride: Annotated[
        int | None, typer.Option(help="uniform: frames from one to the next; default: 30.")
    ] = None,
    decoder: Annotated[str, typer.Option(help="pyav or decord.")] = "pyav",
    policy: Annotated[
        str | None,
        typer.Option(callback=filled, help="YAML file of thresholds, or builtin or default; default: by model."),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(callback=filled, help="SQL condition on the table videos, e.g. \"dataset = 'ucf101'\"."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, max=2**62, help="Label at most so many videos.")] = None,
    max_hours: Annotated[
        float | None, typer.Option(min=0, callback=finite, help="Stop in good order after so many hours.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Also try again what failed.")] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="End a live run of the same labeler and go on.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 when a pair or a video failed.")] = False,
    decode_workers: Annotated[int | None, typer.Option(min=1, help="Decode processes; default: one a core.")] = None,
    label_workers: Annotated[
        int | None, typer.Option(min=1, help="Model processes; default: one a GPU, else a core.")
    ] = None,
    worker_cpus: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            callback=finite,
            help="Cores that each of both asks for; default: its share of what is there. 0.9 lets a cluster grow.",
        ),
    ] = None,
    decode_on: Annotated[
        str | None,
        typer.Option(help="Label of the nodes that decode, e.g. ray.io/node-group=cpu; default: any node."),
    ] = None,
    label_on: Annotated[str | None, typer.Option(help="Label of the nodes that hold the model.")] = None,
    segment_timeout: Annotated[
        float, typer.Option(min=1, callback=finite, help="Seconds a minute of video may take to decode.")
    ] = 300,
    stall_timeout: Annotated[
        float,
        typer.Option(
            min=1,
            callback=finite,
            help="Seconds without any sign of life after which the run ends and says what it waits for.",
        ),
    ] = 3600,
    commit_every: Annotated[float, typer.Option(min=1, callback=finite, help="Seconds between commits.")] = 10,
    endpoint_url: Endpoint = None,
    region: Region = None,
    profile: Profile = None,
    anonymous: Anonymous = None,
    requester_pays: RequesterPays = None,
    json: Json = False,
    config: Config = None,
) -> int:
    """Label every video that is pending: sample frame pairs, name the action, verify, write, commit while it goes on.

    Stop it as you like: Ctrl-C or SIGTERM drains (what was begun is finished and committed), a second one ends at once.
    The same command goes on where the last one stopped. Ray runs on this machine, or on the cluster of RAY_ADDRESS.
    """
    from worldlake.label import label_command, labeler_settings, node_label, of_method

    target = Lake(lake, storage(endpoint_url, region, profile, anonymous, requester_pays))
    unread = False
    if sources:
        counts = _catalog(target, sources, None, "auto", None, retry_failed)
        unread = any_failed(counts)
        for line in in_words(counts, target.uri):
            console.log.info("%s", line)
    settings = labeler_settings(
        model={
            "name": model,
            "revision": revision,
            "adapter": adapter,
            "max_new_tokens": max_new_tokens,
            "dtype": dtype,
            "image_size": image_size,
            "pair_layout": pair_layout,
            "batch_size": batch_size,
            "prompt": prompt,
        },
        sampling={
            "method": method,
            **of_method(
                method,
                {
                    "motion": {"frames_per_clip": frames_per_clip, "min_interval": min_interval},
                    "uniform": {"uniform_stride": uniform_stride},
                },
            ),
            "decoder": decoder,
        },
    )
    summary = label_command(
        target,
        settings,
        policy or ("builtin" if model == "builtin" else "default"),
        {
            "decode_workers": decode_workers,
            "label_workers": label_workers,
            "worker_cpus": worker_cpus,
            "decode_on": node_label("--decode-on", decode_on),
            "label_on": node_label("--label-on", label_on),
            "segment_timeout_s": segment_timeout,
            "stall_timeout_s": stall_timeout,
            "commit_every_s": commit_every,
        },
        where=where,
        limit=limit,
        max_hours=max_hours,
        retry_failed=retry_failed,
        take_over=take_over,
    )
    if json:
        console.print_json(vars(summary))
    else:
        console.out.print(summary.text(), markup=False)
    return 3 if strict and (unread or summary.counts["failed"] or summary.counts["videos_failed"]) else 0


@app.command()
def status(
    lake: LakeUri,
    endpoint_url: Endpoint = None,
    region: Region = None,
    profile: Profile = None,
    json: Json = False,
    config: Config = None,
) -> int:
    """Say what the lake holds, what is pending under each labeler, and whether the sums balance."""
    from worldlake.status import lake_status, print_status

    found = lake_status(open_lake(lake, storage(endpoint_url, region, profile)))
    if json:
        console.print_json(found)
    else:
        print_status(found)
    return 0


@app.command()
def sql(
    query: Annotated[
        str, typer.Argument(help="One SELECT, or - to read it from standard input; SHOW TABLES lists the tables.")
    ],
    lake: LakeUri,
    format: Annotated[str, typer.Option(help="table, csv, json or arrow (an IPC stream).")] = "table",
    endpoint_url: Endpoint = None,
    region: Region = None,
    profile: Profile = None,
    config: Config = None,
) -> int:
    """Query the lake: one read-only SELECT over its tables, streamed.

    There is a view triples_<first 8 digits> for every labeler, and `current` is the labeler that finished last. Images
    are read only when a query names obs or next_obs; CSV and JSON show them as base64. A query in a file, also one that
    begins with a comment: worldlake sql - --lake LAKE < query.sql
    """
    from lake.sql import FORMATS, write_result
    from lake.sql import query as query_

    if format not in FORMATS:
        raise Refused(f"--format {format}: use {', '.join(FORMATS)}")
    if query == "-":
        query = sys.stdin.read()
    with query_(open_lake(lake, storage(endpoint_url, region, profile)), query) as result:
        try:
            write_result(result, format, sys.stdout.buffer)
        except BrokenPipeError:
            # Whoever read, `head` perhaps, has seen enough: end as a program does that SIGPIPE ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
    return 0


@app.command()
def doctor(
    lake: Annotated[
        str | None, typer.Option("--lake", help="Also check that this lake can be read and written.")
    ] = None,
    endpoint_url: Endpoint = None,
    region: Region = None,
    profile: Profile = None,
    json: Json = False,
    config: Config = None,
) -> int:
    """Say what of this machine would stop a run, and how to mend it. Exit code 2 when something would."""
    from worldlake.doctor import examine

    findings = examine(lake, storage(endpoint_url, region, profile))
    if json:
        console.print_json([vars(finding) for finding in findings])
    else:
        for finding in findings:
            console.out.print(f"{finding.level:7} {finding.what}: {finding.found}", markup=False)
            if finding.remedy:
                console.out.print(f"        {finding.remedy}", markup=False)
    return 2 if any(finding.level == "stops" for finding in findings) else 0


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the sample videos, the lake and the report go.")] = Path("demo"),
    videos: Annotated[list[Path] | None, typer.Option(help="Your own video files or folders; may be repeated.")] = None,
    clips: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Clips of the sample world to write; default: 24.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=50_000, help="Which clips: another seed, other clips.")] = 0,
    full: Annotated[
        bool,
        typer.Option("--full", help="Also train: from a few labeled pairs to a world model, in ten minutes."),
    ] = False,
    json: Json = False,
    config: Config = None,
) -> int:
    """Run the whole loop here: write sample videos, label them, query the tables, write a report to look at.

    Needs no cluster, no network and no GPU. Running it again goes on where it stopped.

    With --full the builtin models forget what actions are called. A few labeled clips teach the dynamics model, which
    labels the others; a world model trained on what was verified is compared with one trained on those few alone.
    """
    # With --json standard output holds the document and nothing else.
    with redirect_stdout(sys.stderr) if json else nullcontext():
        result = _full_demo(folder, videos, clips, seed) if full else _demo(folder, videos, clips, seed)
    if json:
        console.print_json(result)
    return 0


def _demo(folder: Path, videos: list[Path] | None, clips: int | None, seed: int) -> dict[str, Any]:
    from worldlake.demo import run_demo

    return run_demo(folder, videos or [], clips or 24, seed)


def _full_demo(folder: Path, videos: list[Path] | None, clips: int | None, seed: int) -> dict[str, Any]:
    from worldlake.full_demo import run_full_demo

    if videos or clips:
        raise Refused("--full has clips of its own: leave out --videos and --clips")
    return run_full_demo(folder / "full", seed)


for command in (upkeep.maintain, upkeep.forget, upkeep.repair):
    app.command()(command)
app.command()(serve.serve)
app.add_typer(serve.keys, name="keys")
app.add_typer(train.app, name="train")
app.add_typer(evaluate.app, name="evaluate")


if __name__ == "__main__":
    main()
