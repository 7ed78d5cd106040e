"""The pairs of a lake that an evaluation is about: chosen by SQL, read at one version, decoded in batches."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from evaluation.probes import Alternative, alternatives
from labeling.images import decode_images
from lake.errors import Refused
from lake.tables import Lake
from models.protocols import Images
from models.verification import resized
from sample_world.clips import FPS, NOTHING, Clip, make_clip
from sample_world.oracle import oracle_of
from sample_world.pairs import IMAGE_SIZE
from training.selection import BY_PEOPLE, SelectionSettings, select_triples
from worldlake import console

Shows = Callable[[npt.NDArray[np.uint8]], str]


@dataclass(frozen=True)
class Choice:
    """Which pairs are evaluated, and how."""

    selection: SelectionSettings
    limit: int
    seed: int
    batch_size: int

    @classmethod
    def of(
        cls,
        split: str,
        datasets: Sequence[str] | None,
        labelers: Sequence[str] | None,
        where: str | None,
        limit: int,
        seed: int,
        batch_size: int,
    ) -> Choice:
        """From options. Raises Refused for a split that does not exist."""
        splits = ("train", "validation", "test")
        if split not in (*splits, "all"):
            raise Refused(f"--split {split}: use {', '.join(splits)} or all")
        if not labelers:
            where = BY_PEOPLE + (f" AND ({where}\n)" if where else "")
        selection = SelectionSettings(
            labelers=tuple(labelers or ()),
            datasets=tuple(datasets or ()),
            splits=() if split == "all" else (split,),
            where=where,
            per_dataset=None,
            classes="phrase",
        )
        return cls(selection, limit, seed, batch_size)


@dataclass(frozen=True)
class Chosen:
    """The pairs, in the order of their ids, and the version of `triples` that they were read from."""

    rows: list[dict[str, Any]]
    others: list[Alternative]
    version: int


@dataclass(frozen=True)
class Batch:
    """Some pairs of one image size, decoded: uint8, shape (batch, height, width, 3)."""

    rows: list[dict[str, Any]]
    others: list[Alternative]
    obs: Images
    next_obs: Images

    @property
    def actions(self) -> list[str]:
        """The true actions."""
        return [row["action"] for row in self.rows]


def choose(lake: Lake, choice: Choice) -> Chosen:
    """Choose and read pairs, still encoded. Raises Refused where there is none, or where an action is empty."""
    handle = lake.table("triples")
    found = select_triples(lake, choice.selection, {"triples": handle.version()})
    if not found.num_rows:
        raise Refused(
            "no triple is chosen: check --split, --dataset and --where; the labels are those of people unless "
            f'--labeler says whose to trust: worldlake sql "SELECT labeler_id, split, count(*) FROM triples GROUP BY '
            f'ALL" --lake {lake.uri}'
        )
    ids = sorted(found["triple_id"].to_pylist())[: choice.limit]
    columns = ["triple_id", "video_id", "uri", "dataset", "action", "obs_time_s", "obs", "next_obs"]
    table = lake.dataset("triples", handle).to_table(columns=columns, filter=pc.field("triple_id").isin(ids))
    # By id, so that compacting the table changes neither the batches nor what is drawn in them.
    rows: list[dict[str, Any]] = table.sort_by("triple_id").to_pylist()
    if empty := [row["triple_id"] for row in rows if not (row["action"] or "").strip()]:
        raise Refused(f"{len(empty)} triples have an empty action ({empty[0]}, ...): leave them out with --where")
    return Chosen(rows, alternatives([row["action"] for row in rows], choice.seed), handle.version())


def batches(chosen: Chosen, size: int, counts: dict[str, int]) -> Iterator[Batch]:
    """Decode pairs, those of one image size together, and count them: `pairs`, and the `unreadable` ones left out.

    Raises Refused where none can be read.
    """
    waiting: dict[tuple[int, ...], list[tuple[dict[str, Any], Alternative, Images]]] = {}
    with console.counter("evaluate", len(chosen.rows)) as counter:
        for row, other in zip(chosen.rows, chosen.others, strict=True):
            try:
                pair = decode_images([row["obs"], row["next_obs"]])
            except (ValueError, TypeError, cv2.error):
                counts["unreadable"] += 1
                continue
            same_size = waiting.setdefault(pair.shape, [])
            same_size.append((row, other, pair))
            if len(same_size) == size:
                yield _stacked(waiting.pop(pair.shape))
                counts["pairs"] += size
                counter(counts["pairs"], counts)
        for rest in waiting.values():
            yield _stacked(rest)
            counts["pairs"] += len(rest)
    if not counts["pairs"]:
        raise Refused(f"none of the {counts['unreadable']} chosen pairs has images that can be read: label them again")


def _stacked(items: list[tuple[dict[str, Any], Alternative, Images]]) -> Batch:
    rows, others, pairs = zip(*items, strict=True)
    images = np.stack(pairs)
    return Batch(list(rows), list(others), images[:, 0], images[:, 1])


class Oracles:
    """The oracle of the sample world for each pair, from the name of its clip and the time of obs."""

    def __init__(self, lake: Lake, chosen: Chosen) -> None:
        videos = lake.read("videos", ["video_id", "frames"]).to_pylist()
        self._frames = {row["video_id"]: row["frames"] for row in videos}
        row = chosen.rows[0]
        shown = self.of(row)(decode_images([row["obs"]])[0])
        if shown != NOTHING:
            raise Refused(
                f"--oracle: obs of {row['triple_id']} is not what the sample world shows there ({shown}): leave it out"
            )

    def of(self, row: dict[str, Any]) -> Shows:
        """Return the judge of predicted pictures of a row. Raises Refused for a clip of another world."""
        name = PurePosixPath(row["uri"]).name
        match = re.fullmatch(r"sample-(\d+)\.mp4", name)
        frames = self._frames.get(row["video_id"])
        if not match or not frames or row["obs_time_s"] is None:
            raise Refused(f"--oracle: {name} is not a clip of the sample world (sample-<seed>.mp4): leave it out")
        oracle = oracle_of(_clip(int(match.group(1)), frames), round(row["obs_time_s"] * FPS))
        return lambda picture: oracle.judge(resized(picture[None], IMAGE_SIZE)[0]).action


@cache
def _clip(seed: int, frames: int) -> Clip:
    return make_clip(seed, frames=frames)
