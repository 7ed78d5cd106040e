"""How well the builtin world model predicts the effect of an action, in held-out clips of the sample world.

    python -m bench.world                    the figures, into bench/results/world.json

From a frame before every event and the event's name, candidates of the frame after it. The oracle, which knows the
scene, says which action a picture shows; the ceiling is what the image tokenizer makes of the true frame: no prediction
can be better. PSNR is of all pixels of a kind over all pairs. A move has a length that its name does not say, so that
even a perfect model could not predict the changed pixels.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from evaluation.intervals import share_of_groups
from models.loading import load_dynamics
from models.protocols import Images
from models.settings import ModelSettings, TokenSampling, WorldSettings
from models.verification import predict, resized
from models.world.tokens import TokenWorld
from models.world_loading import load_world
from sample_world.clips import Clip, encode_clip, make_clip
from sample_world.oracle import oracle_of
from sample_world.pairs import decoded_frames, kind_of

CHANGED = 12
"""Gray levels of a pixel's largest channel difference above which it counts as changed: codec noise stays below."""


@dataclass(frozen=True)
class Question:
    """A frame before an event of a clip."""

    clip: Clip
    frame: int
    action: str


def questions(seeds: Sequence[int]) -> tuple[list[Question], Images, Images]:
    """All events of the clips, and the frames in the middle of the stills around them."""
    asked, obs, after = [], [], []
    for seed in seeds:
        clip = make_clip(seed)
        starts = [0, *(event.end_frame for event in clip.events)]
        ends = [*(event.start_frame for event in clip.events), clip.frames - 1]
        middles = [(start + end) // 2 for start, end in zip(starts, ends, strict=True)]
        frames = decoded_frames(encode_clip(clip), sorted(set(middles)))
        for i, event in enumerate(clip.events):
            asked.append(Question(clip, middles[i], event.action))
            obs.append(frames[i])
            after.append(frames[i + 1])
    return asked, np.stack(obs), np.stack(after)


def psnr(images: Images, truth: Images, where: npt.NDArray[np.bool_]) -> float:
    """Over the pixels `where`, shape (batch, height, width), in dB."""
    error = np.square((images.astype(np.float64) - truth) / 255).mean(-1)[where].mean()
    return round(float(-10 * np.log10(error)), 2)


def changed_pixels(obs: Images, after: Images) -> npt.NDArray[np.bool_]:
    difference = np.abs(obs.astype(np.int16) - after).max(-1)
    return np.stack([cv2.dilate((d > CHANGED).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0 for d in difference])


def share(hits: Sequence[bool], asked: Sequence[Question]) -> dict[str, float | int]:
    """With an interval that knows which pairs are of one clip."""
    clips = [question.clip.seed for question in asked]
    found = share_of_groups(hits, clips)
    low, high = found.interval
    return {
        "pairs": found.total,
        "videos": len(set(clips)),
        "share": round(found.value, 4),
        "low": round(low, 4),
        "high": round(high, 4),
    }


def figures(world: TokenWorld, asked: list[Question], obs: Images, after: Images, n: int) -> dict[str, object]:
    dynamics = load_dynamics(ModelSettings(name="builtin", batch_size=32), "cpu")
    actions = [question.action for question in asked]
    drawn = predict(world, dynamics, obs, actions, n, keep_candidates=True)
    assert drawn.candidates is not None
    shown_obs, ceiling = (world.shown(resized(images, world.image_size)) for images in (obs, after))
    shown_obs = resized(shown_obs, obs.shape[1])
    pictures = {"one candidate": drawn.candidates[:, 0], f"best of {n}": drawn.images, "tokenizer's ceiling": ceiling}
    pictures = {name: resized(images, after.shape[1]) for name, images in pictures.items()}
    oracles = [oracle_of(question.clip, question.frame) for question in asked]
    changed = changed_pixels(obs, after)
    found: dict[str, object] = {}
    for name, images in pictures.items():
        hits = [o.judge(image).action == a for o, image, a in zip(oracles, images, actions, strict=True)]
        kinds = defaultdict(list)
        for question, hit in zip(asked, hits, strict=True):
            kinds[kind_of(question.action)].append((hit, question))
        named = [a.action for a in dynamics.annotate(shown_obs, images)]
        found[name] = {
            "shows the action, says the oracle": share(hits, asked),
            "shows the action, by kind": {k: share(*zip(*each, strict=True)) for k, each in sorted(kinds.items())},
            "shows the action, says the dynamics model": share(
                [x == a for x, a in zip(named, actions, strict=True)], asked
            ),
            "PSNR changed": psnr(images, after, changed),
            "PSNR unchanged": psnr(images, after, ~changed),
        }
    found["obs itself"] = {"PSNR changed": psnr(obs, after, changed), "PSNR unchanged": psnr(obs, after, ~changed)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="builtin")
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--first-seed", type=int, default=200_000)
    parser.add_argument("-n", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "world.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sampling = TokenSampling(temperature=arguments.temperature)
    world = load_world(WorldSettings(name=arguments.world, batch_size=16, sampling=sampling), "cpu")
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.clips)
    found = figures(world, *questions(seeds), arguments.n)
    found |= {
        "seeds": [seeds.start, seeds.stop],
        "n": arguments.n,
        "temperature": arguments.temperature,
        "machine": platform.machine(),
    }
    print(json.dumps(found, indent=1))
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
