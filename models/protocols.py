"""The interfaces of models, as the rest of the project uses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]
"""A batch of RGB images, uint8, shape (batch, height, width, 3), height = width = the model's `image_size`."""

Codes = npt.NDArray[np.int32]
"""Codes of a batch of images, int32, shape (batch, codes of an image), row by row."""


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


class ImageTokenizer(Protocol):
    """Square images of one size as grids of discrete codes."""

    image_size: int
    """Side in pixels."""
    identity: Mapping[str, Any]
    """All that decides the codes of a pair, beside the weights, as JSON has it."""

    def weights(self) -> Mapping[str, Any]:
        """Tensors by name: what identifies the tokenizer together with `identity`."""
        ...

    def encode(self, images: Images) -> tuple[Codes, npt.NDArray[np.float32]]:
        """Codes, and the features before quantization, float32, shape (batch, codes of an image, channels).

        Raises ValueError where the images are not uint8 of the tokenizer's size.
        """
        ...

    def encode_pairs(self, obs: Images, next_obs: Images) -> tuple[Codes, Codes, npt.NDArray[np.float32]]:
        """Codes of both images of pairs, and squared distances of their features, float32, shape of the codes.

        Raises ValueError as `encode`.
        """
        ...

    def decode(self, codes: Codes) -> Images:
        """Images of codes, uint8 RGB, shape (batch, image_size, image_size, 3)."""
        ...
