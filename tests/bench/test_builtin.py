from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import unknown
from bench.builtin import Labeled, report, sample, telling
from labeling.policy import load_policy
from lake.scores import NAMES

RIGHT = Labeled(
    "a", "it gets darker", "it gets darker", 1, dict.fromkeys(NAMES, 1.0) | {"motion": 0.01, "confidence": 0.0}
)
UNCHANGED = replace(RIGHT, scores={**RIGHT.scores, "copy": 0.0})


def test_an_accepted_pair_without_a_name_counts_as_wrong() -> None:
    clips = [RIGHT, replace(RIGHT, video="b"), replace(RIGHT, truth=None, events=2), UNCHANGED]
    found: dict[str, Any] = report(clips, [replace(RIGHT, truth=None, events=0)], [], load_policy("builtin"))
    whole = found["right, of all accepted"]
    assert (whole["hits"], whole["pairs"], whole["videos"]) == (2, 3, 2)
    assert found["right, of accepted with one event or none"]["pairs"] == 2
    assert found["accepted, photographs in motion"]["hits"] == 1


def test_few_wrong_labels_say_nothing_about_a_score() -> None:
    assert telling([RIGHT] * 50, [RIGHT] * 9)["copy"] is None
    assert telling([RIGHT] * 50, [UNCHANGED] * 10) == {
        "right": 50,
        "wrong": 10,
        **dict.fromkeys(NAMES, 0.5),
        "copy": 1.0,
    }


@pytest.mark.slow
def test_photographs_in_motion_are_videos_with_pairs_that_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unknown, "PHOTOGRAPHS", ("astronaut", "coffee"))
    clips = unknown.write_clips(tmp_path)
    assert len(clips) == 2 * len(unknown.CHANGES)
    for name, path in clips:
        pairs = [pair for pair, _, _ in sample(path, 64)]
        assert len(pairs) >= 4, path
        assert any(pair.obs != pair.next_obs for pair in pairs)
        assert path.name.startswith(name)
