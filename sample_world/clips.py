"""A procedural, seeded world with ground truth: colored shapes on textured backgrounds, written as real H.264 files.

A clip is a chain of still scenes; an event leads from one scene to the next. What exists, where, how large, how lit and
on what texture is drawn from continuous ranges, so no two seeds share a scene. The builtin dynamics model is trained on
clips with seeds from `FIRST_TRAINING_SEED` on; every smaller seed is held out.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from sample_world.drawing import CAMERA_REACH, COLORS, OUTLINES, Frame, Scene, Shape, draw, texture_of

FIRST_TRAINING_SEED = 1_000_000_000
FPS = 25
SIZE = 128
NOTHING = "nothing happens"

# The others look the same after a quarter turn.
TURNING = "triangle"
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}

# Lengths are shares of the frame's width. A radius of .12 is 8 pixels of the 64 that the builtin model sees.
RADIUS = (0.12, 0.24)
MARGIN = 0.02
MOVE = (0.16, 0.38)
PAN = (0.10, 0.26)
RESIZE = (1.4, 1.9)
TURN = (math.radians(80), math.radians(100))
TILT = math.radians(10)
LIGHT = (0.52, 1.0)
DIM = (0.52, 0.74)


@dataclass(frozen=True)
class Event:
    """An action on its way from frame `start_frame`, the last before it, to `end_frame`, the first after it."""

    start_frame: int
    end_frame: int
    action: str


@dataclass(frozen=True)
class Clip:
    """A seeded clip: `scenes[i]` holds before `events[i]`, the last scene after the last event."""

    seed: int
    frames: int
    size: int
    scenes: tuple[Scene, ...]
    events: tuple[Event, ...]

    def scene(self, frame: int) -> Scene:
        """The state at a frame; within an event, the share of the way from one scene to the next."""
        index = sum(event.end_frame <= frame for event in self.events)
        if index == len(self.events) or frame <= self.events[index].start_frame:
            return self.scenes[index]
        event = self.events[index]
        share = (frame - event.start_frame) / (event.end_frame - event.start_frame)
        return _between(self.scenes[index], self.scenes[index + 1], share)

    def images(self) -> Iterator[Frame]:
        """Draw all frames, in order, each of shape (size, size, 3)."""
        texture = texture_of(np.random.default_rng([self.seed, 1]), self.size)
        last_scene, image = None, np.zeros((self.size, self.size, 3), np.uint8)
        for frame in range(self.frames):
            scene = self.scene(frame)
            if scene != last_scene:
                last_scene, image = scene, draw(scene, texture, self.size)
            yield image


@dataclass(frozen=True)
class Span:
    """Events between two frames: the event's name if it is one or none, and how many events overlap.

    `action` is None where two or more events overlap, or one of which less than half is between the frames.
    """

    action: str | None
    events: int


def make_clip(
    seed: int,
    *,
    frames: int = 250,
    size: int = SIZE,
    still: tuple[int, int] = (26, 44),
    change: tuple[int, int] = (3, 5),
) -> Clip:
    """Compose a clip of `frames` frames, `size` pixels square; stills and gradual changes last N frames.

    Shapes that appear, vanish or change color do so from one frame to the next. The same arguments give the same clip.
    """
    rng = np.random.default_rng([seed, 0])
    scenes, events = [_first_scene(rng)], []
    at = int(rng.integers(still[0] // 2, still[1] + 1))
    while True:
        action, scene, sudden = _next_scene(rng, scenes[-1])
        end = at + (1 if sudden else int(rng.integers(change[0], change[1] + 1)))
        if end >= frames:
            break
        events.append(Event(at, end, action))
        scenes.append(scene)
        at = end + int(rng.integers(still[0], still[1] + 1))
    return Clip(seed, frames, size, tuple(scenes), tuple(events))


def span_between(events: Sequence[Event], obs_frame: int, next_frame: int) -> Span:
    """Look up what happened between two frames of a clip, by frame number."""
    over = [e for e in events if e.start_frame < next_frame and e.end_frame > obs_frame]
    if not over:
        return Span(NOTHING, 0)
    event = over[0]
    inside = min(next_frame, event.end_frame) - max(obs_frame, event.start_frame)
    whole = len(over) == 1 and 2 * inside >= event.end_frame - event.start_frame
    return Span(event.action if whole else None, len(over))


def encode_clip(clip: Clip) -> bytes:
    """Encode a clip as H.264 in MP4 at 25 frames per second, frame i at i / 25 s. Byte for byte the same each time."""
    encoded = io.BytesIO()
    with av.open(encoded, "w", format="mp4") as container:
        # One thread: the encoder's decisions then do not depend on the machine.
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "20", "threads": "1"})
        stream.width = stream.height = clip.size
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, FPS)
        for image in clip.images():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return encoded.getvalue()


def write_folder(folder: Path, seeds: Sequence[int], *, frames: int = 250) -> list[Path]:
    """Write one clip per seed into a folder, and what happens in them into `ground_truth.json` beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    truth, paths = {}, []
    for seed in seeds:
        clip = make_clip(seed, frames=frames)
        paths.append(folder / f"sample-{seed:06d}.mp4")
        paths[-1].write_bytes(encode_clip(clip))
        truth[paths[-1].name] = [asdict(event) for event in clip.events]
    (folder / "ground_truth.json").write_text(json.dumps({"fps": FPS, "clips": truth}, indent=1))
    return paths


class GroundTruth:
    """The events in the clips of a folder that `write_folder` wrote."""

    def __init__(self, folder: Path):
        recorded = json.loads((folder / "ground_truth.json").read_text())
        self._fps: int = recorded["fps"]
        self._events = {name: [Event(**event) for event in events] for name, events in recorded["clips"].items()}

    def __contains__(self, name: str) -> bool:
        return name in self._events

    def span(self, name: str, obs_time_s: float, next_time_s: float) -> Span:
        """Return the events in a clip, by its file name, between two times in seconds. KeyError for an unknown clip."""
        return span_between(self._events[name], round(obs_time_s * self._fps), round(next_time_s * self._fps))


def _first_scene(rng: np.random.Generator) -> Scene:
    scene = Scene((), (float(rng.uniform(-0.2, 0.2)), float(rng.uniform(-0.2, 0.2))), float(rng.uniform(*LIGHT)))
    for _ in range(int(rng.integers(1, 4))):
        if (shape := _new_shape(rng, scene)) is not None:
            scene = replace(scene, shapes=(*scene.shapes, shape))
    return scene


def _new_shape(rng: np.random.Generator, scene: Scene) -> Shape | None:
    """A shape of another color than the others, at a free place; None where none was found."""
    colors = [color for color in COLORS if color not in {s.color for s in scene.shapes}]
    color, kind = colors[rng.integers(len(colors))], list(OUTLINES)[rng.integers(len(OUTLINES))]
    for _ in range(40):
        radius = float(rng.uniform(RADIUS[0], RADIUS[1] * 0.8))
        x, y = (float(c + rng.uniform(radius, 1 - radius)) for c in scene.camera)
        angle = float(rng.integers(4) * math.pi / 2 + rng.uniform(-TILT, TILT))
        shape = Shape(color, kind, x, y, radius, angle)
        if _fits(replace(scene, shapes=(*scene.shapes, shape))):
            return shape
    return None


def _fits(scene: Scene) -> bool:
    """Return whether all shapes are in view and apart, the camera is in reach and the light is in range."""
    shapes = scene.shapes
    in_view = all(
        s.radius + MARGIN <= place - camera <= 1 - s.radius - MARGIN
        for s in shapes
        for place, camera in zip((s.x, s.y), scene.camera, strict=True)
    )
    apart = all(
        math.hypot(a.x - b.x, a.y - b.y) >= a.radius + b.radius + MARGIN
        for i, a in enumerate(shapes)
        for b in shapes[:i]
    )
    sized = all(RADIUS[0] <= s.radius <= RADIUS[1] for s in shapes)
    reachable = all(abs(c) <= CAMERA_REACH for c in scene.camera) and LIGHT[0] <= scene.light <= LIGHT[1]
    distinct = len({s.color for s in shapes}) == len(shapes)
    return in_view and apart and sized and reachable and distinct


def _next_scene(rng: np.random.Generator, scene: Scene) -> tuple[str, Scene, bool]:
    """Draw an action that the scene allows: its phrase, the scene after it, and whether it is sudden."""
    # The world refuses moves, growth and pans more often than the rest; so weighted, all come about equally often.
    kinds = ["move"] * 6 + ["resize"] * 9 + ["pan"] * 4 + ["turn"] * 4 + ["light"] * 3 + ["color", "vanish", "appear"]
    while True:
        kind = kinds[rng.integers(len(kinds))]
        if kind in ("pan", "light", "appear"):
            action, after = _change_scene(rng, scene, kind)
        else:
            action, after = _change_shape(rng, scene, kind)
        if after is not None and _fits(after) and _path_is_free(scene, after):
            return action, after, kind in ("color", "vanish", "appear")


def _change_scene(rng: np.random.Generator, scene: Scene, kind: str) -> tuple[str, Scene | None]:
    if kind == "pan":
        word = list(DIRECTIONS)[rng.integers(4)]
        (dx, dy), step = DIRECTIONS[word], rng.uniform(*PAN)
        camera = (float(scene.camera[0] + dx * step), float(scene.camera[1] + dy * step))
        return f"the camera pans {word}", replace(scene, camera=camera)
    if kind == "light":
        factor = float(rng.uniform(*DIM))
        if rng.integers(2):
            return "it gets darker", replace(scene, light=scene.light * factor)
        return "it gets brighter", replace(scene, light=scene.light / factor)
    shape = _new_shape(rng, scene) if len(scene.shapes) < 3 else None
    if shape is None:
        return "", None
    return f"{shape.name} appears", replace(scene, shapes=(*scene.shapes, shape))


def _change_shape(rng: np.random.Generator, scene: Scene, kind: str) -> tuple[str, Scene | None]:
    index = int(rng.integers(len(scene.shapes)))
    shape = scene.shapes[index]
    others = scene.shapes[:index] + scene.shapes[index + 1 :]
    if kind == "vanish":
        return f"{shape.name} vanishes", replace(scene, shapes=others) if others else None
    word, changed = _CHANGES[kind](rng, shape)
    if changed is None:
        return "", None
    return f"{shape.name} {word}", replace(scene, shapes=(*scene.shapes[:index], changed, *scene.shapes[index + 1 :]))


def _move(rng: np.random.Generator, shape: Shape) -> tuple[str, Shape | None]:
    word = list(DIRECTIONS)[rng.integers(4)]
    (dx, dy), step = DIRECTIONS[word], float(rng.uniform(*MOVE))
    drift = float(rng.uniform(-0.15, 0.15))
    x, y = shape.x + step * (dx + drift * dy), shape.y + step * (dy + drift * dx)
    return f"moves {word}", replace(shape, x=x, y=y)


def _turn(rng: np.random.Generator, shape: Shape) -> tuple[str, Shape | None]:
    if shape.kind != TURNING:
        return "", None
    angle = float(rng.uniform(*TURN))
    return "turns", replace(shape, angle=shape.angle + (angle if rng.integers(2) else -angle))


def _resize(rng: np.random.Generator, shape: Shape) -> tuple[str, Shape | None]:
    factor = float(rng.uniform(*RESIZE))
    if rng.integers(2):
        return "grows", replace(shape, radius=shape.radius * factor)
    return "shrinks", replace(shape, radius=shape.radius / factor)


def _recolor(rng: np.random.Generator, shape: Shape) -> tuple[str, Shape | None]:
    others = [color for color in COLORS if color != shape.color]
    color = others[rng.integers(len(others))]
    return f"becomes {color}", replace(shape, color=color)


_CHANGES = {"move": _move, "turn": _turn, "resize": _resize, "color": _recolor}


def _path_is_free(before: Scene, after: Scene) -> bool:
    if len(before.shapes) != len(after.shapes):
        return True
    return all(_fits(_between(before, after, share)) for share in (0.25, 0.5, 0.75))


def _between(before: Scene, after: Scene, share: float) -> Scene:
    """The scene at a share of the way; both hold the same shapes, as gradual changes neither add nor remove any."""

    def mix(a: float, b: float) -> float:
        return a + (b - a) * share

    shapes = tuple(
        replace(a, x=mix(a.x, b.x), y=mix(a.y, b.y), radius=mix(a.radius, b.radius), angle=mix(a.angle, b.angle))
        for a, b in zip(before.shapes, after.shapes, strict=True)
    )
    camera = (mix(before.camera[0], after.camera[0]), mix(before.camera[1], after.camera[1]))
    return Scene(shapes, camera, mix(before.light, after.light))
