"""What the rest of the project asks of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]
"""A batch of RGB images, uint8, shape (batch, height, width, 3), height = width = the model's `image_size`."""


@dataclass(frozen=True)
class Annotation:
    """The action that a dynamics model names for a frame pair.

    `mean_logprob` is the mean natural-log probability of the generated tokens, the end token included, and `tokens` how
    many these are.
    """

    action: str
    mean_logprob: float
    tokens: int


class DynamicsModel(Protocol):
    """`p(action | obs, next_obs)`."""

    image_size: int

    def annotate(self, obs: Images, next_obs: Images) -> list[Annotation]:
        """Name the action between each `obs[i]` and `next_obs[i]`, greedily. One annotation per pair, in order."""
        ...

    def score(self, obs: Images, next_obs: Images, actions: Sequence[str]) -> npt.NDArray[np.float32]:
        """Mean token log-probability, shape (batch,), of each given action text and its end token."""
        ...


class WorldModel(Protocol):
    """`p(next_obs | obs, action)`."""

    image_size: int

    def sample(self, obs: Images, actions: Sequence[str], n: int, *, seed: int | Sequence[int] = 0) -> Images:
        """Candidate next observations, uint8, shape (batch, n, height, width, 3).

        The same seed, one for all or one for each obs, gives the same candidates on one machine; obs and action are
        read once for all n.
        """
        ...

    def shown(self, images: Images) -> Images:
        """Images as this model can draw them at best, through its image tokenizer; of the same shape and dtype."""
        ...

    def score(self, obs: Images, actions: Sequence[str], next_obs: Images) -> npt.NDArray[np.float32]:
        """Mean token log-probability, natural, shape (batch,), of each given next observation's image tokens."""
        ...
