"""Training pairs: sample-world clips and unlike footage, as the labeler would see them, and their mirror images."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt

from sample_world.clips import NOTHING, Clip, Event, encode_clip, make_clip
from sample_world.drawing import COLORS, Frame

IMAGE_SIZE = 64
"""Side of a training frame in pixels."""

Frames = npt.NDArray[np.uint8]
"""RGB, uint8, shape (frames, IMAGE_SIZE, IMAGE_SIZE, 3)."""

UNCLEAR = "cannot tell what happens"
"""The answer to footage unlike the sample world, and to two events at once: a refusal, not a label."""

# What an action becomes where the frames are swapped, mirrored left to right, or turned a quarter to the left.
REVERSED = {"left": "right", "up": "down", "grows": "shrinks", "appears": "vanishes", "brighter": "darker"}
REVERSED |= {after: before for before, after in REVERSED.items()}
MIRRORED = {"left": "right", "right": "left"}
TURNED = {"up": "left", "left": "down", "down": "right", "right": "up"}


@dataclass(frozen=True)
class Pairs:
    """Frame pairs over shared frames: pair i is `frames[index[i, 0]]`, `frames[index[i, 1]]` and `actions[i]`."""

    frames: Frames
    index: npt.NDArray[np.int64]
    actions: list[str]


def clip_pairs(seed: int) -> Pairs:
    """Pairs of one clip, encoded, decoded and stored as the labeler stores frames; about 25 of them.

    Two for every event (one frame of a pair may be within the event, at least half of which is then in between),
    one for most stills, and one for some neighboring events that touch different things, which is `UNCLEAR`.
    """
    rng = np.random.default_rng([seed, 2])
    # Every third clip has the stills of held-out clips; the others have short ones, which gives more events a clip.
    clip = make_clip(seed) if seed % 3 == 0 else make_clip(seed, still=(3, 9))
    chosen = _choose(rng, clip)
    numbers = sorted({n for obs, after, _ in chosen for n in (obs, after)})
    place = {n: i for i, n in enumerate(numbers)}
    index = np.array([(place[obs], place[after]) for obs, after, _ in chosen], np.int64)
    return Pairs(decoded_frames(encode_clip(clip), numbers), index, [action for _, _, action in chosen])


def _choose(rng: np.random.Generator, clip: Clip) -> list[tuple[int, int, str]]:
    starts = [0, *(e.end_frame for e in clip.events)]
    ends = [*(e.start_frame for e in clip.events), clip.frames - 1]
    chosen = []
    for i, event in enumerate(clip.events):
        before, after = (starts[i], event.start_frame), (event.end_frame, ends[i + 1])
        middle = (event.start_frame + event.end_frame) // 2
        for cut in rng.integers(0, 6, size=2):
            obs = rng.integers(event.start_frame, middle, endpoint=True) if cut == 0 else _within(rng, before)
            last = event.start_frame + event.end_frame - middle
            end = rng.integers(last, event.end_frame, endpoint=True) if cut == 1 else _within(rng, after)
            chosen.append((int(obs), int(end), event.action))
        if rng.uniform() < 0.22:
            first, second = sorted((_within(rng, before), _within(rng, before)))
            chosen.append((first, second, NOTHING))
        if i and rng.uniform() < 0.25 and not _touched(clip.events[i - 1]) & _touched(event):
            chosen.append((_within(rng, (starts[i - 1], ends[i - 1])), _within(rng, after), UNCLEAR))
    return chosen


def _within(rng: np.random.Generator, still: tuple[int, int]) -> int:
    return int(rng.integers(still[0], still[1], endpoint=True))


def _touched(event: Event) -> set[str]:
    """The colors an event is about, also the one it gives; or `camera`, or `gets` for the light."""
    words = event.action.split()
    return {word for word in words if word in COLORS} or {words[1]}


def decoded_frames(encoded: bytes, numbers: list[int]) -> Frames:
    """Frames of an encoded clip by number, in order, at the model's size and as the labeler stores them."""
    wanted, frames = set(numbers), []
    with av.open(io.BytesIO(encoded), "r") as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                frames.append(as_stored(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)))
    return np.stack(frames)


def as_stored(image: Frame) -> Frame:
    """Shrink a square frame to the model's size and pass it through the JPEG that the labeler keeps."""
    small = cv2.resize(image, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_AREA)
    parameters = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(small[:, :, ::-1]), parameters)
    decoded: Frame = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)[:, :, ::-1]
    return decoded


def unlike_pairs(seed: int, count: int = 40) -> Pairs:
    """Pairs of drawn footage that is not of the sample world, all of them `UNCLEAR`.

    Views into large pictures of natural statistics (1/f noise), clutter and soft gradients, that shift, zoom, turn, get
    a thing moved across them, change light and are noisy or blurred; some pairs are two different pictures.
    """
    rng = np.random.default_rng([seed, 3])
    pictures = [_picture(rng) for _ in range(6)]
    frames = []
    for _ in range(count):
        first, second = rng.choice(6, size=2, replace=False)
        view = np.array([rng.uniform(40, 130), rng.uniform(-0.3, 0.3), *rng.uniform(80, 176, size=2)])
        moved = view + np.array([rng.normal(0, 6), rng.normal(0, 0.06), *rng.normal(0, 6, size=2)]) * rng.integers(0, 3)
        cut = rng.uniform() < 0.1
        pair = [_view(pictures[first], view), _view(pictures[second if cut else first], moved)]
        _move_thing(rng, pair, pictures[second])
        frames += [as_stored(_spoil(rng, image)) for image in pair]
    index = np.arange(2 * count, dtype=np.int64).reshape(count, 2)
    return Pairs(np.stack(frames), index, [UNCLEAR] * count)


def _picture(rng: np.random.Generator) -> Frame:
    """A 256 x 256 picture: colored 1/f^a noise, with or without polygons, ellipses and lines scattered over it."""
    fx, fy = np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256)[None, :]
    falloff = np.maximum(np.hypot(fx, fy), 1 / 256) ** -rng.uniform(0.8, 2.2)
    noise = rng.uniform(0.1, 0.7) * rng.standard_normal((3, 256, 256)) + rng.standard_normal((1, 256, 256))
    waves = np.fft.ifft2(np.fft.fft2(noise) * falloff).real
    waves = waves / waves.std() * rng.uniform(20, 65) + rng.uniform(50, 190) + rng.normal(0, 20, size=(3, 1, 1))
    image = np.ascontiguousarray(waves.transpose(1, 2, 0).clip(0, 255).astype(np.uint8))
    for _ in range(int(rng.choice([0, 6, 30, 80]))):
        color = tuple(int(c) for c in rng.integers(0, 256, size=3))
        center, reach = rng.integers(0, 256, size=2), rng.uniform(3, 45)
        points = (center + rng.normal(0, reach, size=(int(rng.integers(3, 7)), 2))).astype(np.int32)
        drawing = rng.integers(3)
        if drawing == 0:
            cv2.fillPoly(image, [points], color, cv2.LINE_AA)
        elif drawing == 1:
            axes = (int(reach), int(reach * rng.uniform(0.2, 1)))
            cv2.ellipse(image, points[0].tolist(), axes, float(rng.uniform(0, 180)), 0, 360, color, -1, cv2.LINE_AA)
        else:
            cv2.line(image, points[0].tolist(), points[1].tolist(), color, int(rng.integers(1, 9)), cv2.LINE_AA)
    return image


def _view(picture: Frame, view: npt.NDArray[Any]) -> Frame:
    """The 64 x 64 view of half-width, angle, and center `view` into a picture."""
    half, angle, x, y = view
    scale, cos, sin = max(half, 24) / 32, math.cos(angle), math.sin(angle)
    rotation = np.array([[cos, -sin], [sin, cos]]) * scale
    matrix = np.column_stack([rotation, np.array([x, y]) - rotation @ np.array([32.0, 32.0])])
    flags = cv2.INTER_AREA | cv2.WARP_INVERSE_MAP
    seen = cv2.warpAffine(picture, matrix, (64, 64), flags=flags, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(seen, np.uint8)


def _move_thing(rng: np.random.Generator, pair: list[Frame], texture: Frame) -> None:
    """Draw a textured ellipse into both views, at different places; a third of the pairs go without."""
    if rng.integers(3) == 0:
        return
    place, step = rng.uniform(0, 64, size=2), rng.normal(0, 7, size=2)
    axes = (int(rng.uniform(3, 22)), int(rng.uniform(3, 22)))
    for image, center in zip(pair, (place, place + step), strict=True):
        mask = np.zeros((64, 64), np.uint8)
        cv2.ellipse(mask, center.astype(int).tolist(), axes, float(rng.uniform(0, 30)), 0, 360, 1, -1)
        image[mask > 0] = texture[:64, :64][mask > 0]


def _spoil(rng: np.random.Generator, image: Frame) -> Frame:
    """Noise, blur and a little light, as cameras and codecs add."""
    if rng.integers(2):
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 1.2))).astype(np.uint8)
    noisy = image * rng.uniform(0.9, 1.1) + rng.normal(0, rng.uniform(0, 5), size=image.shape)
    spoilt: Frame = noisy.clip(0, 255).astype(np.uint8)
    return spoilt


@cache
def transformed(action: str, turns: int, mirror: bool, swap: bool) -> str:
    """The action of a pair whose frames were turned left `turns` quarters, then mirrored, then swapped."""
    words = action.split()
    for _ in range(turns):
        words = [TURNED.get(word, word) for word in words]
    if mirror:
        words = [MIRRORED.get(word, word) for word in words]
    if swap:
        words = [REVERSED.get(word, word) for word in words]
        if "becomes" in words:
            words[1], words[-1] = words[-1], words[1]
    return " ".join(words)


def all_actions() -> list[str]:
    """Every answer the model may give, in a fixed order."""
    changes = [*(f"moves {way}" for way in TURNED), "turns", "grows", "shrinks", "vanishes", "appears"]
    changes += [f"becomes {color}" for color in COLORS]
    scene = [*(f"the camera pans {way}" for way in TURNED), "it gets darker", "it gets brighter"]
    return [f"the {color} shape {change}" for color in COLORS for change in changes] + [*scene, NOTHING, UNCLEAR]


def kind_of(action: str) -> str:
    """The action without the thing it is about, such as `moves left`."""
    return " ".join(word for word in action.split() if word not in (*COLORS, "shape", "the"))
