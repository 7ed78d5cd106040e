"""The oracle of the sample world: what it says of real next frames of held-out clips, spoilt ones, and wrong ones."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sample_world.clips import DIRECTIONS, FIRST_TRAINING_SEED, NOTHING, Clip, encode_clip, make_clip
from sample_world.drawing import Frame, Scene, Shape, draw, texture_of
from sample_world.oracle import Oracle, oracle_of
from sample_world.pairs import UNCLEAR, as_stored, decoded_frames, transformed

HELD_OUT = range(500_000, 500_010)
MANY = range(600_000, 600_150)


@dataclass(frozen=True)
class Shown:
    """A pair of frames of a clip's file, as stored, the one action between them, and the oracle of obs."""

    clip: Clip
    frame: int
    oracle: Oracle
    obs: Frame
    next_obs: Frame
    action: str


def single_pairs(clip: Clip) -> Iterator[Shown]:
    """A pair for every event, from the still before it to the still after it; and one within a still."""
    rng = np.random.default_rng([clip.seed, 9])
    starts = [0, *(e.end_frame for e in clip.events)]
    ends = [*(e.start_frame for e in clip.events), clip.frames - 1]
    numbers = [int(rng.integers(*still, endpoint=True)) for still in zip(starts, ends, strict=True)]
    spans = [(numbers[i], numbers[i + 1], event.action) for i, event in enumerate(clip.events)]
    spans.append((starts[0], ends[0], NOTHING))
    numbers = sorted({number for *between, _ in spans for number in between})
    images = dict(zip(numbers, decoded_frames(encode_clip(clip), numbers), strict=True))
    for obs, after, action in spans:
        yield Shown(clip, obs, oracle_of(clip, obs), images[obs], images[after], action)


@pytest.fixture(scope="module")
def pairs() -> list[Shown]:
    return [pair for seed in HELD_OUT for pair in single_pairs(make_clip(seed))]


def spoilt(image: Frame, seed: int) -> Frame:
    """The picture as a bad tokenizer gives it back: blurred and noisy."""
    blurred = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 1.0)
    noise = np.random.default_rng(seed).normal(0, 8, image.shape)
    return np.clip(blurred + noise, 0, 255).round().astype(np.uint8)


def picture(clip: Clip, scene: Scene, texture_seed: int | None = None) -> Frame:
    rng = np.random.default_rng([clip.seed if texture_seed is None else texture_seed, 1])
    return as_stored(draw(scene, texture_of(rng, clip.size), clip.size))


def right(pairs: Iterable[Shown], blur_and_noise: bool) -> float:
    shown = ((pair, spoilt(pair.next_obs, i) if blur_and_noise else pair.next_obs) for i, pair in enumerate(pairs))
    return float(np.mean([pair.oracle.judge(image).action == pair.action for pair, image in shown]))


@pytest.mark.parametrize("blur_and_noise", [False, True])
def test_names_the_true_action_of_held_out_clips(pairs: list[Shown], blur_and_noise: bool):
    assert max(HELD_OUT) < FIRST_TRAINING_SEED
    assert len(pairs) > 60
    assert right(pairs, blur_and_noise) >= 0.97


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("blur_and_noise", [False, True])
def test_names_the_true_action_of_many_held_out_clips(blur_and_noise: bool):
    pairs = (pair for seed in MANY for pair in single_pairs(make_clip(seed)))
    assert right(pairs, blur_and_noise) >= 0.995


def test_an_unchanged_picture_shows_nothing(pairs: list[Shown]):
    for i, pair in enumerate(pairs):
        bright, dark = (np.clip(pair.obs * f, 0, 255).astype(np.uint8) for f in (1.05, 0.95))
        shifted = np.roll(pair.obs, 1, axis=i % 2)
        for same in (pair.obs, spoilt(pair.obs, i), (bright, dark, shifted)[i % 3]):
            assert pair.oracle.judge(same).action == NOTHING


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, FIRST_TRAINING_SEED - 1), data=st.data())
def test_an_event_run_backwards_shows_the_opposite(seed: int, data: st.DataObject):
    clip = make_clip(seed)
    i = data.draw(st.integers(0, len(clip.events) - 1))
    event = clip.events[i]
    judgment = oracle_of(clip, event.end_frame).judge(picture(clip, clip.scenes[i]))
    assert judgment.action == transformed(event.action, 0, False, True)
    assert event.action.endswith("turns") or judgment.action != event.action


def moves(scene: Scene, step: float) -> list[tuple[int, str, Shape]]:
    """Every way to move a shape so that it stays in the picture and touches no other: its index, the word, it moved."""
    found = []
    for index, shape in enumerate(scene.shapes):
        for word, (dx, dy) in sorted(DIRECTIONS.items()):
            moved = replace(shape, x=shape.x + step * dx, y=shape.y + step * dy)
            others = scene.shapes[:index] + scene.shapes[index + 1 :]
            seen = zip((moved.x, moved.y), scene.camera, strict=True)
            inside = [moved.radius <= at - c <= 1 - moved.radius for at, c in seen]
            apart = [np.hypot(moved.x - o.x, moved.y - o.y) >= moved.radius + o.radius for o in others]
            if all(inside + apart):
                found.append((index, word, moved))
    return found


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, FIRST_TRAINING_SEED - 1), step=st.floats(0.14, 0.4), data=st.data())
def test_another_shape_or_direction_is_not_the_asked_action(seed: int, step: float, data: st.DataObject):
    clip = make_clip(seed)
    scene = clip.scenes[0]
    possible = moves(scene, step) or moves(scene, 0.14)
    assume(possible)
    index, word, moved = data.draw(st.sampled_from(possible))
    image = picture(clip, replace(scene, shapes=(*scene.shapes[:index], moved, *scene.shapes[index + 1 :])))
    assert oracle_of(clip, 0).judge(image).action == f"{moved.name} moves {word}"


def test_a_pan_may_invent_what_comes_into_view(pairs: list[Shown]):
    pans = [p for p in pairs if "pans" in p.action]
    assert pans
    for pair in pans:
        before = pair.clip.scene(pair.frame)
        after = next(
            s for s, e in zip(pair.clip.scenes[1:], pair.clip.events, strict=True) if e.start_frame >= pair.frame
        )
        other = picture(pair.clip, replace(after, shapes=()), texture_seed=3)
        shift = [round((b - a) * 64) for a, b in zip(before.camera, after.camera, strict=True)]
        columns, rows = (np.arange(64) + by for by in shift)
        new = ((rows < 0) | (rows > 63))[:, None] | ((columns < 0) | (columns > 63))[None, :]
        invented = np.where(new[..., None], other, pair.next_obs)
        assert oracle_of(pair.clip, pair.frame).judge(invented).action == pair.action


def test_pictures_that_nothing_explains_are_unclear(pairs: list[Shown]):
    oracle = pairs[0].oracle
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    for strange in (noise, np.full((64, 64, 3), 255, np.uint8), 255 - pairs[0].obs):
        judgment = oracle.judge(strange)
        assert judgment.action == UNCLEAR
        assert judgment.fit < 20


def test_wrong_shapes_and_types_are_refused(pairs: list[Shown]):
    oracle = pairs[0].oracle
    with pytest.raises(ValueError, match="64"):
        oracle.judge(np.zeros((128, 128, 3), np.uint8))
    with pytest.raises(ValueError, match="float32"):
        oracle.judge(np.zeros((64, 64, 3), np.float32))  # type: ignore[arg-type]
