"""Laws of the choice of frames."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from labeling.samplers.motion import MotionSampler

scored = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 15)), max_size=40)


@given(scored, st.integers(2, 8), st.integers(1, 40))
def test_choice_respects_count_interval_and_order_of_motion(
    steps: list[tuple[int, int]], count: int, min_interval: int
) -> None:
    sampler = MotionSampler(frames_per_clip=count, min_interval=min_interval)
    motion = [float(score) for score, _ in steps]
    positions = np.cumsum([step for _, step in steps]).tolist()
    chosen = sampler.choose(positions, motion)
    assert chosen == sorted(set(chosen)) == sampler.choose(positions, motion)
    assert len(chosen) <= count
    gaps = np.diff([positions[index] for index in chosen])
    assert (gaps >= min_interval).all()
    for index in set(range(len(motion))) - set(chosen):
        # Left out only for frames that come first: a full set, or neighbors, of a better rank.
        better = [other for other in chosen if (-motion[other], other) < (-motion[index], index)]
        assert len(better) == count or any(abs(positions[index] - positions[other]) < min_interval for other in better)


def test_choice_of_nothing_and_of_ties() -> None:
    assert MotionSampler().choose([], []) == []
    assert MotionSampler(frames_per_clip=3).choose(list(range(0, 100, 10)), [1.0] * 10) == [0, 2, 4]
