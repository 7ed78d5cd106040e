"""Verified predictions: of several candidates the one that the dynamics model finds most compatible with the action.

Qiu et al., arXiv 2506.06006, inference-time verification: `argmax_i log p(action | obs, candidate_i)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from models.protocols import DynamicsModel, Images, WorldModel


@dataclass(frozen=True)
class Verified:
    """The best of `n` candidates of each observation.

    `images` are uint8, shape (batch, height, width, 3), of the world model's size; `scores`, float32, shape (batch, n),
    the mean log-probability per token of the action given each candidate (NaN where the dynamics model gave none);
    `chosen`, int64, shape (batch,), the place of the best one; `candidates`, where they were asked for, all of them,
    uint8, shape (batch, n, height, width, 3).
    """

    images: Images
    scores: npt.NDArray[np.float32]
    chosen: npt.NDArray[np.int64]
    candidates: Images | None = None


def predict(
    world: WorldModel,
    dynamics: DynamicsModel,
    obs: Images,
    actions: Sequence[str],
    n: int,
    *,
    seed: int | Sequence[int] = 0,
    keep_candidates: bool = False,
) -> Verified:
    """Draw `n` next observations of each pair of obs and action, and choose by the dynamics model's score.

    All candidates of all observations are scored in one call. n = 1 is plain sampling, with a score. The first of equal
    candidates is chosen. `obs` may have any size: each model sees it, and the candidates, at its own. The dynamics
    model is shown obs as the world model would draw it: beside a sharp obs, all that the tokenizer loses would look
    like something that happened.

    Raises ValueError where n is less than 1, or actions are more or fewer than observations.
    """
    if n < 1:
        raise ValueError(f"{n} candidates")
    if len(actions) != len(obs):
        raise ValueError(f"{len(actions)} actions for {len(obs)} observations")
    small = resized(obs, world.image_size)
    candidates = world.sample(small, actions, n, seed=seed)
    scores = dynamics.score(
        np.repeat(resized(world.shown(small), dynamics.image_size), n, axis=0),
        resized(candidates.reshape(-1, *candidates.shape[2:]), dynamics.image_size),
        [action for action in actions for _ in range(n)],
    ).reshape(len(obs), n)
    # NaN would win: to numpy it is the largest of all.
    chosen = np.where(np.isnan(scores), -np.inf, scores).argmax(axis=1)
    images = candidates[np.arange(len(obs)), chosen]
    return Verified(images, scores, chosen, candidates if keep_candidates else None)


def resized(images: Images, size: int) -> Images:
    """Square images at another size in pixels; as labeling shrinks frames, by areas."""
    if images.shape[1:3] == (size, size):
        return images
    way = cv2.INTER_AREA if size < images.shape[1] else cv2.INTER_LINEAR
    return np.stack([cv2.resize(image, (size, size), interpolation=way) for image in images])
