"""Which action a picture shows, told without any learned model: the sample world is drawn again for every action.

An oracle knows the scene and the texture of obs, so it can draw what each action would lead to and name the one whose
drawing is nearest to a predicted next_obs. It judges world models; it never sees the true next_obs.

Given the true next_obs of 1,077 pairs of held-out clips, it names the action of every one, also when they are blurred
and noisy (PSNR 28.5 dB): `pytest -m long tests/sample_world/test_oracle.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import cv2
import numpy as np
import numpy.typing as npt

from sample_world.clips import DIM, DIRECTIONS, MOVE, NOTHING, PAN, RADIUS, RESIZE, TILT, TURN, TURNING, Clip
from sample_world.drawing import COLORS, OUTLINES, Frame, Scene, Shape, draw, texture_of
from sample_world.pairs import IMAGE_SIZE, UNCLEAR

FLOOR_DB = 20.0
"""A picture that even its best drawing fits worse than this, in dB, shows nothing that the oracle knows: `UNCLEAR`."""

# Tokenizers blur and add noise; after this blur, in pixels, both weigh little beside any change.
_BLUR = 1.0

# What a pan brings into view is the one thing that obs does not tell. Any texture of the world counts there: this many
# gray levels in full light are forgiven, less than any color differs from a background.
_FORGIVEN = 40.0

# Drawings of this many actions, the nearest ones of the grid, are brought nearer; the others are out of the question.
_REFINED = 5
_HALVINGS = 3

# A shape may be drawn so far out of the frame or into another one, in frame widths: predictions are not exact.
_SLACK = 0.03

# A pair may show half an event, and a prediction of nothing may be off a little: with ranges that begin at this share
# of the world's least step, less than 3/8 of it is nearer to nothing, and half of it is nearer to the action.
_LEAST = 0.75

_Image = npt.NDArray[np.float32]
_Values = tuple[float, ...]


@dataclass(frozen=True)
class Judgment:
    """The content of a picture.

    `action` is the phrase that explains it best, `NOTHING`, or `UNCLEAR` where not even that fits; `fit` is the PSNR of
    its best drawing in dB (both lightly blurred).
    """

    action: str
    fit: float


@dataclass(frozen=True)
class _Family:
    """All that one phrase may mean: the scenes after, over continuous `axes`, each a grid in ascending order."""

    action: str
    after: Callable[..., Scene]
    axes: tuple[_Values, ...] = ()

    def grid(self) -> Iterator[_Values]:
        return product(*self.axes)

    def steps(self) -> _Values:
        return tuple((axis[-1] - axis[0]) / (len(axis) - 1) for axis in self.axes)

    def within(self, values: _Values) -> _Values:
        return tuple(min(max(v, axis[0]), axis[-1]) for v, axis in zip(values, self.axes, strict=True))


@dataclass(frozen=True)
class _Drawn:
    """A drawing of a family; the pixels that obs shows too, None for all; how many gray levels the rest is forgiven."""

    family: _Family
    values: _Values
    image: Frame
    seen: npt.NDArray[np.bool_] | None
    forgiven: float


class Oracle:
    """Judges predictions of what follows one obs of the sample world."""

    def __init__(self, texture: npt.NDArray[np.float32], scene: Scene):
        """Draw what each action leads to, about 120 drawings, which take 1.5 MB.

        `texture` is what `texture_of` gave for the clip, float32 RGB of shape (2 * size, 2 * size, 3) for frames of
        `size` pixels; `scene` is the true scene of obs. ValueError for a texture of another shape.
        """
        if texture.ndim != 3 or texture.shape[0] != texture.shape[1] or texture.shape[2] != 3:
            raise ValueError(f"a texture has shape (2 * size, 2 * size, 3), not {texture.shape}")
        self._texture, self._scene = texture, scene
        self._obs = self._draw(scene)
        drawn = (self._drawn(family, values) for family in _families(scene) for values in family.grid())
        self._grid = [drawing for drawing in drawn if drawing is not None]

    def judge(self, predicted: Frame) -> Judgment:
        """Say which action a predicted next_obs shows.

        `predicted` is uint8 RGB of shape (64, 64, 3); ValueError otherwise.
        """
        if predicted.shape != (IMAGE_SIZE, IMAGE_SIZE, 3) or predicted.dtype != np.uint8:
            raise ValueError(f"a prediction is uint8 of shape (64, 64, 3), not {predicted.dtype} of {predicted.shape}")
        picture: _Image = cv2.GaussianBlur(predicted.astype(np.float32), (0, 0), _BLUR)
        best: dict[str, tuple[float, _Drawn]] = {}
        for drawing in [*self._grid, *self._appearances(picture)]:
            error = _error(picture, drawing)
            if drawing.family.action not in best or error < best[drawing.family.action][0]:
                best[drawing.family.action] = (error, drawing)
        nearest = sorted(best.values(), key=lambda pair: pair[0])[:_REFINED]
        refined = ((self._refine(picture, error, drawing), drawing.family.action) for error, drawing in nearest)
        error, action = min(refined)
        fit = _decibels(error)
        return Judgment(action if fit >= FLOOR_DB else UNCLEAR, fit)

    def _draw(self, scene: Scene) -> Frame:
        # At the clip's size and then shrunk, as frames are stored: drawn at 64 pixels, pixel centers and edges would
        # shift, which alone costs 4 to 10 dB.
        image = draw(scene, self._texture, self._texture.shape[0] // 2)
        small = cv2.resize(image, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_AREA)
        # Rounded: an evaluation keeps hundreds of oracles, and as floats their drawings would fill gigabytes.
        blurred: Frame = cv2.GaussianBlur(small, (0, 0), _BLUR)
        return blurred

    def _drawn(self, family: _Family, values: _Values) -> _Drawn | None:
        after = family.after(*values)
        if family.axes and not _possible(after):
            return None
        forgiven = _FORGIVEN * after.light
        return _Drawn(family, values, self._draw(after), _seen(self._scene, after), forgiven)

    def _refine(self, picture: _Image, error: float, drawing: _Drawn) -> float:
        """The error of a family's best drawing, found by halving the steps of the grid around its nearest one."""
        steps = drawing.family.steps()
        for _ in range(_HALVINGS):
            steps = tuple(step / 2 for step in steps)
            for i, step in enumerate(steps):
                for way in (-step, step):
                    values = (*drawing.values[:i], drawing.values[i] + way, *drawing.values[i + 1 :])
                    other = self._drawn(drawing.family, drawing.family.within(values))
                    if other is not None and (nearer := _error(picture, other)) < error:
                        error, drawing = nearer, other
                        break
        return error

    def _appearances(self, picture: _Image) -> Iterator[_Drawn]:
        """Drawings of new shapes of every free color and kind where the picture differs from obs."""
        blob = _blob(np.abs(picture - self._obs).max(axis=2) > 35 * self._scene.light)
        if blob is None:
            return
        radius = min(max(blob[2], RADIUS[0]), RADIUS[1])
        x, y = (min(max(at, radius), 1 - radius) + c for at, c in zip(blob, self._scene.camera, strict=False))
        place = (x, y, radius)
        for color, kind in product(COLORS, OUTLINES):
            if color in {s.color for s in self._scene.shapes}:
                continue
            for quarter in range(4 if kind == TURNING else 1):
                angle = quarter * math.pi / 2
                reach = (*((at, 0.05) for at in place), (angle, TILT))
                axes = tuple((middle - off, middle, middle + off) for middle, off in reach)
                family = _Family(f"the {color} shape appears", partial(_appeared, self._scene, color, kind), axes)
                if (drawing := self._drawn(family, (*place, angle))) is not None:
                    yield drawing


def oracle_of(clip: Clip, frame: int) -> Oracle:
    """The oracle for predictions from one frame of a clip, by its number, as obs."""
    return Oracle(texture_of(np.random.default_rng([clip.seed, 1]), clip.size), clip.scene(frame))


def _families(scene: Scene) -> Iterator[_Family]:
    """All actions but appearances, which start from what changed in the picture."""
    yield _Family(NOTHING, lambda: scene)
    for word in DIRECTIONS:
        yield _Family(f"the camera pans {word}", partial(_panned, scene, word), (_axis(PAN[0] * _LEAST, PAN[1], 8),))
    least = DIM[1] ** _LEAST
    yield _Family("it gets darker", partial(_lit, scene), (_axis(DIM[0], least, 5),))
    yield _Family("it gets brighter", partial(_lit, scene), (_axis(1 / least, 1 / DIM[0], 5),))
    for index, shape in enumerate(scene.shapes):
        for word, change, axes in _shape_changes(shape):
            yield _Family(f"{shape.name} {word}", partial(_changed, scene, index, change), axes)


def _shape_changes(shape: Shape) -> Iterator[tuple[str, Callable[..., Shape | None], tuple[_Values, ...]]]:
    for word in DIRECTIONS:
        yield f"moves {word}", partial(_moved, shape, word), (_axis(MOVE[0] * _LEAST, MOVE[1], 6), (-0.15, 0.0, 0.15))
    if shape.kind == TURNING:
        for way in (-1, 1):
            yield "turns", partial(_turned, shape, way), (_axis(TURN[0] * _LEAST, TURN[1], 3),)
    least = RESIZE[0] ** _LEAST
    yield "grows", partial(_resized, shape), (_axis(least, RESIZE[1], 4),)
    yield "shrinks", partial(_resized, shape), (_axis(1 / RESIZE[1], 1 / least, 4),)
    yield "vanishes", lambda: None, ()
    for color in COLORS:
        if color != shape.color:
            yield f"becomes {color}", partial(replace, shape, color=color), ()


def _axis(low: float, high: float, count: int) -> _Values:
    return tuple(float(v) for v in np.linspace(low, high, count))


def _moved(shape: Shape, word: str, step: float, drift: float) -> Shape:
    dx, dy = DIRECTIONS[word]
    return replace(shape, x=shape.x + step * (dx + drift * dy), y=shape.y + step * (dy + drift * dx))


def _turned(shape: Shape, way: int, angle: float) -> Shape:
    return replace(shape, angle=shape.angle + way * angle)


def _resized(shape: Shape, factor: float) -> Shape:
    return replace(shape, radius=shape.radius * factor)


def _changed(scene: Scene, index: int, change: Callable[..., Shape | None], *values: float) -> Scene:
    shape = change(*values)
    kept = () if shape is None else (shape,)
    return replace(scene, shapes=(*scene.shapes[:index], *kept, *scene.shapes[index + 1 :]))


def _panned(scene: Scene, word: str, step: float) -> Scene:
    dx, dy = DIRECTIONS[word]
    return replace(scene, camera=(scene.camera[0] + dx * step, scene.camera[1] + dy * step))


def _lit(scene: Scene, factor: float) -> Scene:
    return replace(scene, light=scene.light * factor)


def _appeared(scene: Scene, color: str, kind: str, x: float, y: float, radius: float, angle: float) -> Scene:
    return replace(scene, shapes=(*scene.shapes, Shape(color, kind, x, y, radius, angle)))


def _possible(scene: Scene) -> bool:
    """Return whether every shape is in view and apart from the others: a hidden one would seem to have vanished."""
    in_view = all(
        s.radius - _SLACK <= place - camera <= 1 - s.radius + _SLACK
        for s in scene.shapes
        for place, camera in zip((s.x, s.y), scene.camera, strict=True)
    )
    return (
        in_view
        and scene.light <= 1 + _SLACK
        and all(
            math.hypot(a.x - b.x, a.y - b.y) >= a.radius + b.radius - _SLACK
            for i, a in enumerate(scene.shapes)
            for b in scene.shapes[:i]
        )
    )


def _seen(before: Scene, after: Scene) -> npt.NDArray[np.bool_] | None:
    """Which pixels of the frame after the frame before shows too; None for all."""
    if before.camera == after.camera:
        return None
    columns, rows = (
        np.arange(IMAGE_SIZE) + (b - a) * IMAGE_SIZE for a, b in zip(before.camera, after.camera, strict=True)
    )
    seen_columns, seen_rows = ((places >= 0) & (places <= IMAGE_SIZE - 1) for places in (columns, rows))
    return seen_rows[:, None] & seen_columns[None, :]


def _error(picture: _Image, drawing: _Drawn) -> float:
    """Mean squared error, in squared gray levels, over what obs shows too; plus, for the rest, what is not forgiven."""
    difference = picture - drawing.image
    if drawing.seen is None:
        return float(np.mean(difference**2))
    excess = np.maximum(np.abs(difference[~drawing.seen]) - drawing.forgiven, 0)
    return float(np.mean(difference[drawing.seen] ** 2) + np.sum(excess**2) / difference.size)


def _blob(changed: npt.NDArray[np.bool_]) -> tuple[float, float, float] | None:
    """The circle around the largest patch of changed pixels: x, y and radius in frame widths; None for no shape's."""
    # Edges of shapes that are a little off change too; opened, such lines go, while the arms of shapes stay.
    patches = cv2.morphologyEx(changed.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(patches)
    if count < 2:
        return None
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    rows, columns = np.nonzero(labels == largest)
    (x, y), radius = cv2.minEnclosingCircle(np.column_stack([columns, rows]).astype(np.float32))
    if not RADIUS[0] / 2 <= radius / IMAGE_SIZE <= RADIUS[1] * 1.5:
        return None
    return (x + 0.5) / IMAGE_SIZE, (y + 0.5) / IMAGE_SIZE, (radius - _BLUR) / IMAGE_SIZE


def _decibels(error: float) -> float:
    return 10 * math.log10(255**2 / max(error, 1e-6))
