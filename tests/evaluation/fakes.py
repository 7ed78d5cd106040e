"""A world of gray squares, with models that know its rules: what each figure must come to is known beforehand."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.protocols import Annotation, Images

SIZE = 32
_STEPS = {"left": (0, -8), "right": (0, 8), "up": (-8, 0), "down": (8, 0)}
ACTIONS = [f"the square moves {way}" for way in _STEPS]
Image = npt.NDArray[np.uint8]


def scene(row: int = 12, column: int = 12) -> Image:
    """A bright square of 8 pixels at a place of a dark picture."""
    image = np.full((SIZE, SIZE, 3), 40, np.uint8)
    image[row : row + 8, column : column + 8] = 220
    return image


def after(obs: Image, action: str) -> Image:
    """Return a scene after an action; an unknown one changes nothing."""
    rows, columns = np.nonzero(obs[..., 0] > 128)
    match = re.search("left|right|up|down", action)
    down, right = _STEPS[match.group()] if match else (0, 0)
    return scene(int(rows.min()) + down, int(columns.min()) + right)


def pairs() -> tuple[Images, Images]:
    """A pair for each of `ACTIONS`."""
    obs = np.stack([scene()] * len(ACTIONS))
    return obs, np.stack([after(image, action) for image, action in zip(obs, ACTIONS, strict=True)])


class Knows:
    """A dynamics model and a world model that are always right; `turned` names and paints the opposite."""

    def __init__(self, *, turned: bool = False, copies: bool = False) -> None:
        self.image_size, self._turned, self._copies = SIZE, turned, copies

    def annotate(self, obs: Images, next_obs: Images) -> list[Annotation]:
        named = []
        for before, following in zip(obs, next_obs, strict=True):
            right = [one for one in ACTIONS if np.abs(after(before, one).astype(int) - following).max() < 100]
            named.append(Annotation(right[0] if right else "nothing happens", -0.1, 3))
        return named

    def score(self, obs: Images, next_obs: Images, actions: Sequence[str]) -> npt.NDArray[np.float32]:
        truth = np.stack([after(before, action) for before, action in zip(obs, actions, strict=True)])
        errors = np.abs(truth.astype(np.float32) - next_obs).mean((1, 2, 3))
        return (errors if self._turned else -errors).astype(np.float32)


class Paints(Knows):
    """The same as a world model; candidate i is the i-th of all actions, the right one last, or obs where it copies."""

    def sample(self, obs: Images, actions: Sequence[str], n: int, *, seed: int = 0) -> Images:
        if self._copies:
            return np.repeat(obs[:, None], n, axis=1)
        candidates = []
        for image, action in zip(obs, actions, strict=True):
            wrong = [one for one in ACTIONS if one != action]
            candidates.append([after(image, one) for one in [*wrong[: n - 1], action]])
        return np.array(candidates)

    def shown(self, images: Images) -> Images:
        return images

    def score(self, obs: Images, actions: Sequence[str], next_obs: Images) -> npt.NDArray[np.float32]:  # type: ignore[override]
        return super().score(obs, next_obs, actions)
