"""Settings refuse wrong values and fill in missing ones."""

from __future__ import annotations

from typing import Any

import pytest

from labeling.samplers.motion import MotionSampler
from labeling.samplers.uniform import UniformSampler
from labeling.settings import RunSettings, SamplingSettings
from lake.errors import Refused


@pytest.mark.parametrize(
    "wrong",
    [
        {"sampler": {"frames_per_clip": 1}},
        {"sampler": {"min_interval": 0}},
        {"sampler": {"method": "uniform", "min_interval": 5}},
        {"sampler": {"method": "best"}},
        {"decoder": "ffmpeg"},
        {"shot_treshold": 0.5},
        {"max_clip_seconds": float("nan")},
    ],
)
def test_impossible_sampling_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        SamplingSettings(**wrong)


def test_the_method_is_motion_unless_given() -> None:
    assert SamplingSettings.model_validate({"sampler": {"min_interval": 5}}).sampler == MotionSampler(min_interval=5)
    assert SamplingSettings.model_validate({"sampler": {"method": "uniform"}}).sampler == UniformSampler()


@pytest.mark.parametrize("wrong", [{"decode_on": "cpu"}, {"commit_every": float("inf")}, {"decode_workers": 0}])
def test_impossible_use_of_a_cluster_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        RunSettings(**wrong)
