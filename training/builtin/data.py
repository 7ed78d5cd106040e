"""Training pairs of the sample world, in shards; each step sees them turned, mirrored and swapped at random."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.verification import resized
from sample_world.clips import FIRST_TRAINING_SEED
from sample_world.pairs import UNCLEAR, Pairs, clip_pairs, transformed, unlike_pairs

CLIPS_PER_SHARD = 24
FIRST_EVALUATION_SEED = 500_000_000
EVALUATION_CLIPS = 24


def generate(folder: Path, shards: int) -> None:
    """Write the shards that are missing: pairs of `CLIPS_PER_SHARD` clips and some unlike ones each."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        path = folder / f"{shard:05d}.npz"
        if not path.exists():
            first = FIRST_TRAINING_SEED + shard * CLIPS_PER_SHARD
            parts = [clip_pairs(first + i) for i in range(CLIPS_PER_SHARD)] + [unlike_pairs(first)]
            pairs = joined(parts)
            half = path.with_suffix(".part")
            with half.open("wb") as file:
                actions = np.array(pairs.actions)
                np.savez(file, frames=pairs.frames, index=pairs.index, actions=actions)
            half.rename(path)


def joined(parts: list[Pairs]) -> Pairs:
    """Several sets of pairs as one."""
    starts = np.cumsum([0, *(len(part.frames) for part in parts[:-1])])
    index = np.concatenate([part.index + start for part, start in zip(parts, starts, strict=True)])
    return Pairs(np.concatenate([p.frames for p in parts]), index, [a for p in parts for a in p.actions])


def read_shards(folder: Path, shards: int) -> Pairs:
    """Read the first `shards` shards. Raises FileNotFoundError where one is missing."""
    parts = []
    for shard in range(shards):
        with np.load(folder / f"{shard:05d}.npz") as arrays:
            parts.append(Pairs(arrays["frames"], arrays["index"], arrays["actions"].tolist()))
    return joined(parts)


def training_batch(pairs: Pairs, step: int, size: int) -> Pairs:
    """The pairs of a step, each turned, mirrored and swapped at random; the same for the same step."""
    rng = np.random.default_rng([step, 4])
    frames, actions = [], []
    for row in rng.integers(len(pairs.actions), size=size):
        turns, mirror, swap = int(rng.integers(4)), bool(rng.integers(2)), bool(rng.integers(2))
        for number in pairs.index[row][::-1] if swap else pairs.index[row]:
            turned = np.rot90(pairs.frames[number], turns)
            frames.append(turned[:, ::-1] if mirror else turned)
        actions.append(transformed(pairs.actions[row], turns, mirror, swap))
    return Pairs(np.stack(frames), np.arange(2 * size).reshape(size, 2), actions)


def held_out() -> Pairs:
    """Pairs of clips that are never trained on, nor used by the demo and the benchmarks."""
    return joined([clip_pairs(FIRST_EVALUATION_SEED + i) for i in range(EVALUATION_CLIPS)])


def with_action(pairs: Pairs) -> Pairs:
    """The pairs that have an action."""
    named = [i for i, action in enumerate(pairs.actions) if action != UNCLEAR]
    return Pairs(pairs.frames, pairs.index[named], [pairs.actions[i] for i in named])


def shrunk(pairs: Pairs, size: int) -> Pairs:
    """The pairs at another image size in pixels."""
    return Pairs(resized(pairs.frames, size), pairs.index, pairs.actions)
