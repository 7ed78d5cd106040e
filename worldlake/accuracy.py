"""How right labels are where the truth is known: the clips of the sample world."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from lake.tables import Lake
from models.sample_world import GroundTruth

SCORES = ("confidence", "direction", "copy")


@dataclass(frozen=True)
class Share:
    """A share with its 95 % Wilson score interval (Wilson 1927)."""

    right: int
    total: int

    @property
    def value(self) -> float:
        """The share itself; NaN of nothing."""
        return self.right / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end."""
        if not self.total:
            return math.nan, math.nan
        z, n, p = 1.959964, self.total, self.value
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, centre - half), min(1.0, centre + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1%} ({low:.1%} to {high:.1%}) of {self.total}" if self.total else "none"


@dataclass(frozen=True)
class Judged:
    """A labelled pair and what really happened: `truth` is None where the pair spans parts of several events."""

    row: dict[str, Any]
    accepted: bool
    truth: str | None

    @property
    def right(self) -> bool:
        """Named exactly."""
        return bool(self.row["action"] == self.truth)


def judge(lake: Lake, labeler_id: str, truth: GroundTruth) -> list[Judged]:
    """Every pair of sample-world clips that a labeler decided, with the truth."""
    columns = ["video_id", "uri", "obs_pts", "next_pts", "obs_time_s", "next_time_s", "action", "motion", *SCORES]
    judged = []
    for name in ("triples", "rejections"):
        for row in lake.read(name, [*columns, "labeler_id"]).to_pylist():
            clip = PurePosixPath(row["uri"]).name
            if row["labeler_id"] == labeler_id and clip in truth:
                span = truth.span(clip, row["obs_time_s"], row["next_time_s"])
                judged.append(Judged(row, name == "triples", span.action))
    return judged


def summary(judged: Sequence[Judged]) -> dict[str, Any]:
    """Shares named exactly, before and after verification, and how well each score tells right from wrong."""
    clear = [pair for pair in judged if pair.truth is not None]
    accepted = [pair for pair in judged if pair.accepted]
    return {
        "one event or none, named exactly": Share(sum(pair.right for pair in clear), len(clear)),
        "the same after verification": Share(
            sum(pair.right for pair in clear if pair.accepted), sum(pair.accepted for pair in clear)
        ),
        "accepted, of pairs that span one event or none": Share(sum(pair.accepted for pair in clear), len(clear)),
        "accepted, of pairs that span several or part of one": Share(
            sum(pair.truth is None for pair in accepted), len(judged) - len(clear)
        ),
        "auroc": {
            score: auroc([pair.row[score] for pair in clear], [pair.right for pair in clear]) for score in SCORES
        },
    }


def auroc(scores: Sequence[float], right: Sequence[bool]) -> float:
    """Probability that a right label scores higher than a wrong one, ties half (Mann-Whitney U); NaN without both."""
    positive = np.array([score for score, is_right in zip(scores, right, strict=True) if is_right])
    negative = np.array([score for score, is_right in zip(scores, right, strict=True) if not is_right])
    if not len(positive) or not len(negative):
        return math.nan
    difference = positive[:, None] - negative[None, :]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())
