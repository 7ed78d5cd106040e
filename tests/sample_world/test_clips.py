"""The sample world: seeded, and its ground truth is what the pixels show."""

from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sample_world.clips import (
    DIRECTIONS,
    FPS,
    NOTHING,
    Clip,
    Event,
    GroundTruth,
    Span,
    encode_clip,
    make_clip,
    span_between,
    write_folder,
)
from sample_world.drawing import COLORS, Frame, Scene

CLIPS = [make_clip(seed) for seed in range(30)]


def test_the_same_seed_gives_the_same_file_and_another_seed_another():
    assert encode_clip(make_clip(7)) == encode_clip(make_clip(7))
    assert encode_clip(make_clip(7)) != encode_clip(make_clip(8))


def test_only_events_change_pixels():
    for clip in CLIPS[:8]:
        images = list(clip.images())
        changing = {n for e in clip.events for n in range(e.start_frame, e.end_frame)}
        for number, (before, after) in enumerate(pairwise(images)):
            assert np.array_equal(before, after) == (number not in changing)


def test_events_are_apart_and_every_kind_comes():
    words = {word for clip in CLIPS for event in clip.events for word in event.action.split()}
    assert words >= {
        "moves",
        "turns",
        "grows",
        "shrinks",
        "vanishes",
        "appears",
        "becomes",
        "pans",
        "darker",
        "brighter",
    }
    for clip in CLIPS:
        assert 4 <= len(clip.events) <= 9
        assert all(b.start_frame - a.end_frame >= 26 for a, b in pairwise(clip.events))


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: str(clip.seed))
def test_the_pixels_do_what_the_action_says(clip: Clip):
    images = list(clip.images())
    for event, before, after in zip(clip.events, clip.scenes, clip.scenes[1:], strict=False):
        obs, next_obs = images[event.start_frame], images[event.end_frame]
        words = event.action.split()
        if words[-1] in ("darker", "brighter"):
            ratio = next_obs.mean() / obs.mean()
            assert ratio < 0.85 if words[-1] == "darker" else ratio > 1.15
        elif words[1] == "camera":
            # Contents move against the camera.
            (x, y), _ = cv2.phaseCorrelate(gray(obs), gray(next_obs), cv2.createHanningWindow((128, 128), cv2.CV_32F))
            dx, dy = DIRECTIONS[words[-1]]
            assert -(dx * x + dy * y) > 6
        else:
            check_shape(words, mask(obs, words[1], before), mask(next_obs, words[1], after))


def gray(image: Frame) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)


def mask(image: Frame, color: str, scene: Scene) -> np.ndarray:
    """Where a color is, under the light of the scene."""
    return np.abs(image.astype(int) - np.array(COLORS[color]) * scene.light).max(axis=2) < 8


def check_shape(words: list[str], before: np.ndarray, after: np.ndarray) -> None:
    verb, area, new_area = words[3], before.sum(), after.sum()
    if verb in ("vanishes", "becomes"):
        assert area > 100
        assert new_area == 0
    elif verb == "appears":
        assert area == 0
        assert new_area > 100
    elif verb in ("grows", "shrinks"):
        assert new_area > 1.5 * area if verb == "grows" else area > 1.5 * new_area
    elif verb == "moves":
        dy, dx = np.argwhere(after).mean(axis=0) - np.argwhere(before).mean(axis=0)
        ux, uy = DIRECTIONS[words[-1]]
        assert dx * ux + dy * uy > 16
        assert abs(dx * uy) + abs(dy * ux) < 8
    else:
        assert verb == "turns"
        assert 0.8 < area / new_area < 1.25
        assert (before != after).sum() > 0.2 * area


def test_shapes_stay_in_view_and_apart():
    for scene in (scene for clip in CLIPS for scene in clip.scenes):
        assert 1 <= len(scene.shapes) <= 3
        assert len({s.color for s in scene.shapes}) == len(scene.shapes)
        for i, a in enumerate(scene.shapes):
            assert all(a.radius < p - c < 1 - a.radius for p, c in zip((a.x, a.y), scene.camera, strict=True))
            assert all(np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius for b in scene.shapes[:i])


def test_files_hold_the_clip_and_the_truth_lies_beside_them(tmp_path: Path):
    [path] = write_folder(tmp_path / "clips", [11])
    clip = make_clip(11)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        frames = list(container.decode(stream))
    assert [round(f.time * FPS) for f in frames] == list(range(clip.frames))
    for frame, image in zip(frames[::25], list(clip.images())[::25], strict=True):
        assert np.abs(frame.to_ndarray(format="rgb24").astype(int) - image).mean() < 6
    truth = GroundTruth(tmp_path / "clips")
    assert path.name in truth
    assert "other.mp4" not in truth
    first = clip.events[0]
    assert truth.span(path.name, 0.0, first.start_frame / FPS) == Span(NOTHING, 0)
    assert truth.span(path.name, first.start_frame / FPS, first.end_frame / FPS) == Span(first.action, 1)


@given(st.integers(0, 60), st.integers(1, 60))
def test_a_span_names_one_event_of_which_half_is_inside(obs: int, gap: int):
    events = [Event(20, 24, "a"), Event(50, 51, "b")]
    span = span_between(events, obs, obs + gap)
    inside = [len(set(range(e.start_frame, e.end_frame)) & set(range(obs, obs + gap))) for e in events]
    assert span.events == sum(n > 0 for n in inside)
    assert (span.action == "a") == (inside[0] >= 2 and not inside[1])
    assert (span.action == "b") == (inside[1] == 1 and not inside[0])
    assert (span.action == NOTHING) == (not any(inside))
