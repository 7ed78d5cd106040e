"""Intervals: frames, or seconds in one spelling."""

from __future__ import annotations

import re

import pytest

from labeling.samplers.motion import MotionSampler
from labeling.samplers.uniform import UniformSampler
from lake.errors import Refused
from tests.worldlake.command import worldlake


@pytest.mark.parametrize(
    ("given", "kept"), [(20, 20), ("20", 20), ("0.7s", "0.7s"), ("0.70s", "0.7s"), ("00.7s", "0.7s"), ("2s", "2s")]
)
def test_one_interval_has_one_spelling(given: int | str, kept: int | str) -> None:
    assert MotionSampler(min_interval=given).min_interval == kept
    assert UniformSampler(uniform_stride=given).uniform_stride == kept


WRONG = (0, -1, 0.7, True, 10**400, "0s", ".7s", "1e3s", "nans", "infs", "-1s", " 1s", "1_0s", "٣s", "1e7s", "0.001s")


@pytest.mark.parametrize("given", WRONG)
def test_other_intervals_are_refused(given: object) -> None:
    remedy = "min_interval: give a number of frames (1 to 1,000,000), or seconds with an s after it (0.01s to 1000000s)"
    with pytest.raises(Refused, match=f"^{re.escape(remedy)}"):
        MotionSampler(min_interval=given)  # type: ignore[arg-type]


def test_the_command_says_what_an_interval_is(tmp_path) -> None:  # type: ignore[no-untyped-def]
    code, said = worldlake("label", "--lake", str(tmp_path), "--min-interval", "0.7")
    assert code == 2
    assert "--min-interval" in said
    assert "seconds with an s after it" in said
    assert len(said.strip().splitlines()) == 1
