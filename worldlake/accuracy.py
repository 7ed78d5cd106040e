"""How right labels are where the truth is known: the clips of the sample world."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from evaluation.intervals import Share as Share
from evaluation.intervals import share_of_groups
from lake.scores import NAMES
from lake.tables import Lake
from sample_world.clips import GroundTruth


@dataclass(frozen=True)
class Judged:
    """A labeled pair and what really happened: `truth` is None where the pair spans parts of several events."""

    row: dict[str, Any]
    accepted: bool
    truth: str | None

    @property
    def right(self) -> bool:
        """Named exactly."""
        return bool(self.row["action"] == self.truth)


def judge(lake: Lake, labeler_id: str, truth: GroundTruth) -> list[Judged]:
    """Every pair of sample-world clips that a labeler decided, with the truth."""
    columns = ["video_id", "uri", "obs_pts", "next_pts", "obs_time_s", "next_time_s", "action", *NAMES]
    judged = []
    for name in ("triples", "rejections"):
        for row in lake.read(name, [*columns, "labeler_id"]).to_pylist():
            clip = PurePosixPath(row["uri"]).name
            if row["labeler_id"] == labeler_id and clip in truth:
                span = truth.span(clip, row["obs_time_s"], row["next_time_s"])
                judged.append(Judged(row, name == "triples", span.action))
    return judged


def summary(judged: Sequence[Judged]) -> dict[str, Any]:
    """Shares named exactly, before and after verification, and how well each score tells right from wrong.

    An accepted pair that spans parts of several events has no right name, so it counts as wrong.
    """
    clear = [pair for pair in judged if pair.truth is not None]
    unclear = [pair for pair in judged if pair.truth is None]
    accepted = [pair for pair in judged if pair.accepted]
    return {
        "one event or none, named exactly": _share([pair.right for pair in clear], clear),
        "right, of all accepted": _share([pair.right for pair in accepted], accepted),
        "accepted, of pairs that span one event or none": _share([pair.accepted for pair in clear], clear),
        "accepted, of pairs that span several or part of one": _share([pair.accepted for pair in unclear], unclear),
        "auroc": {name: auroc([pair.row[name] for pair in clear], [pair.right for pair in clear]) for name in NAMES},
    }


def _share(hits: Sequence[bool], pairs: Sequence[Judged]) -> Share:
    return share_of_groups(hits, [pair.row["video_id"] for pair in pairs])


def auroc(scores: Sequence[float | None], right: Sequence[bool]) -> float:
    """Probability that a right label scores higher than a wrong one, ties half (Mann-Whitney U); NaN without both.

    Labels whose score is None are left out.
    """
    known = [(score, is_right) for score, is_right in zip(scores, right, strict=True) if score is not None]
    positive = [score for score, is_right in known if is_right]
    negative = [score for score, is_right in known if not is_right]
    if not positive or not negative:
        return math.nan
    # Imported here, because it takes a second and only the end of a demo needs it.
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(positive, negative, method="asymptotic").statistic) / (len(positive) * len(negative))
