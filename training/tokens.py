"""Image tokens made once: both images of every chosen triple, as codes and feature distances, in the table `tokens`.

A frozen tokenizer says the same in each of the paper's 40 epochs, at a hundred times the cost of reading it.
"""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy

from lake.failures import Failure
from lake.tables import DataFile, Lake, now, to_table
from lake.writer import Fences, Writer
from models.world_loading import load_image_tokenizer, tokenizer_id
from training.data import read
from training.prefetch import decode_images

COMMIT_EVERY_S = 10.0

_COLUMNS = ["triple_id", "video_id", "obs", "next_obs"]
# Pairs of a file: some megabytes of codes at 512 pixels, and a minute's work at most.
_ROWS = 256


class Tokenize:
    """A Ray actor that holds an image tokenizer. Triples in, one written file of `tokens` out, and what failed."""

    def __init__(self, lake: Lake, run_id: str, folder: Path, image_size: int | None) -> None:
        self._lake, self._run_id = lake, run_id
        self._images = load_image_tokenizer(folder, image_size)
        self._id = tokenizer_id(self._images)

    def __call__(self, triples: pa.Table) -> pa.Table:
        """A block of triples as one row with a pickled `(DataFile | None, failures)`."""
        rows: list[dict[str, Any]] = []
        failures: list[dict[str, Any]] = []
        try:
            rows = self._tokens(triples)
        except ValueError:
            for pair in (triples.slice(row, 1) for row in range(len(triples))):
                try:
                    rows += self._tokens(pair)
                except ValueError as error:
                    failures.append(_failure(pair, self._run_id, "tokenize", error))
        file = self._lake.write_file(to_table("tokens", rows), "tokens", self._run_id) if rows else None
        return pa.table({"made": [pickle.dumps((file, failures))]})

    def _tokens(self, triples: pa.Table) -> list[dict[str, Any]]:
        size = self._images.image_size
        obs, following, distances = self._images.encode_pairs(
            *(decode_images(triples[column], size) for column in ("obs", "next_obs"))
        )
        return [
            {
                "triple_id": id_.as_py(),
                "video_id": video.as_py(),
                "tokenizer_id": self._id,
                "obs_codes": obs[row].astype("<i4").tobytes(),
                "next_codes": following[row].astype("<i4").tobytes(),
                "distances": distances[row].tolist(),
                "tokenized_at": now(),
            }
            for row, (id_, video) in enumerate(zip(triples["triple_id"], triples["video_id"], strict=True))
        ]


class WithImages:
    """Rows of triples whose images can be decoded; the others go to `failures`."""

    def __init__(self, lake: Lake, run_id: str, known: Fences) -> None:
        """`known` are the fences that were read before the triples were chosen."""
        self._lake, self._run_id, self._known = lake, run_id, known

    def __call__(self, triples: pa.Table) -> pa.Table:
        """Filter a block; raises Fenced where its triples may be forgotten by now."""
        failures: dict[int, dict[str, Any]] = {}
        for row in range(len(triples)):
            pair = triples.slice(row, 1)
            try:
                for column in ("obs", "next_obs"):
                    # The size does not matter, and a small one costs least.
                    decode_images(pair[column], 8)
            except ValueError as error:
                failures[row] = _failure(pair, self._run_id, "decode", error)
        Writer(self._lake, known=self._known).append("failures", list(failures.values()))
        return triples.filter(pa.array([row not in failures for row in range(len(triples))], pa.bool_()))


def _failure(pair: pa.Table, run_id: str, stage: str, error: ValueError) -> dict[str, Any]:
    ids = {name: pair[name][0].as_py() for name in ("video_id", "triple_id")}
    return Failure.of(error, scope="pair", stage=stage, run_id=run_id, attempt=1, **ids).to_row()


def make_tokens(
    writer: Writer,
    ids: pa.Array,
    version: int,
    folder: Path,
    image_size: int | None,
    run_id: str,
    stop: threading.Event,
    progress: Callable[[int], None],
) -> None:
    """Tokenize those triples among `ids` (in `triples` at `version`) that have no tokens yet, committing as it goes.

    Set `stop` to end early: what is committed stays, and is not made again. A file that was written and not committed
    when the process died is never seen; two runs at once may write a triple twice, with the same content. `writer` was
    opened before the triples were chosen.

    Raises:
        Fenced: some of the triples may be forgotten by now.
    """
    lake = writer.lake
    missing = _without_tokens(lake, ids, tokenizer_id(load_image_tokenizer(folder, image_size, "cpu")))
    if not len(missing):
        return
    gpus = int(ray.cluster_resources().get("GPU", 0))
    size = gpus or max(1, int(ray.cluster_resources().get("CPU", 1)) // 2)
    made = read(lake, "triples", version, _COLUMNS, missing).map_batches(
        Tokenize,
        fn_constructor_args=(lake, run_id, folder, image_size),
        batch_size=_ROWS,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=size),
        num_cpus=0 if gpus else 0.5,
        num_gpus=1 if gpus else 0,
    )
    files: list[DataFile] = []
    done, committed = 0, time.monotonic()
    for row in made.iter_rows():
        file, failures = pickle.loads(row["made"])  # noqa: S301 - our own workers wrote it
        writer.append("failures", failures)
        files += [file] if file else []
        done += file.rows if file else 0
        progress(done)
        if files and time.monotonic() - committed >= COMMIT_EVERY_S:
            writer.commit("tokens", files)
            files = []
            committed = time.monotonic()
        if stop.is_set():
            break
    if files:
        writer.commit("tokens", files)


def _without_tokens(lake: Lake, ids: pa.Array, tokenizer: str) -> pa.Array:
    """Those of `ids` that have no row under a tokenizer in `tokens`."""
    found = lake.read("tokens", ["triple_id"], pc.field("tokenizer_id") == tokenizer)
    return ids.filter(pc.invert(pc.is_in(ids, value_set=found["triple_id"].combine_chunks())))
