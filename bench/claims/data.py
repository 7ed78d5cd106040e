"""Data of one seed of the claims: labeled pairs, pairs without labels, and questions to be tested with.

No clip is in two of the sets, within a seed or among seeds, and none was seen by the image tokenizer or the pretrained
model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from bench.world import Question, questions
from models.protocols import Images
from sample_world.clips import FIRST_TRAINING_SEED
from sample_world.pairs import Pairs, clip_pairs
from training.builtin.data import joined

_FIRST_SEED = 300_000_000
_CLIPS_APART = 1_000_000
_TEST_CLIPS = 24
_PRETRAINING_CLIPS = 480


@dataclass(frozen=True)
class Sizes:
    """Pairs with a true name, pairs whose names set the thresholds, pairs without a name."""

    labeled: int = 1000
    few: int = 300
    calibration: int = 300
    unlabeled: int = 6000


@dataclass(frozen=True)
class Data:
    """`few` are the first of `labeled`. The names in `unlabeled` are for measuring only: no model is shown them."""

    labeled: Pairs
    few: Pairs
    calibration: Pairs
    unlabeled: Pairs


def training_data(seed: int, sizes: Sizes) -> Data:
    """All that is trained on under a seed."""
    numbers = count(_FIRST_SEED + seed * _CLIPS_APART)
    labeled, calibration, unlabeled = (
        _of_clips(numbers, size) for size in (sizes.labeled, sizes.calibration, sizes.unlabeled)
    )
    return Data(labeled, some(labeled, range(sizes.few)), calibration, unlabeled)


def _of_clips(numbers: Iterator[int], size: int) -> Pairs:
    """The first pairs of the next clips; what the last clip has too many is left out."""
    parts: list[Pairs] = []
    while sum(len(part.actions) for part in parts) < size:
        parts.append(clip_pairs(next(numbers)))
    return some(joined(parts), range(size))


def test_questions(seed: int) -> tuple[list[Question], Images, Images]:
    """Events of clips that no model has seen: see `bench.world.questions`."""
    first = _FIRST_SEED + seed * _CLIPS_APART + _CLIPS_APART // 2
    return questions(range(first, first + _TEST_CLIPS))


def some(pairs: Pairs, rows: Sequence[int]) -> Pairs:
    """Some of the pairs."""
    return Pairs(pairs.frames, pairs.index[list(rows)], [pairs.actions[row] for row in rows])


def named(pairs: Pairs, actions: Sequence[str | None]) -> Pairs:
    """The pairs under other names; without those that have none."""
    rows = [row for row, action in enumerate(actions) if action is not None]
    return Pairs(pairs.frames, pairs.index[rows], [action for action in actions if action is not None])


def pretraining_pairs() -> Pairs:
    """Pairs of clips that the image tokenizer was trained on, with their actions left out."""
    pairs = joined([clip_pairs(FIRST_TRAINING_SEED + i) for i in range(_PRETRAINING_CLIPS)])
    return Pairs(pairs.frames, pairs.index, [""] * len(pairs.actions))
