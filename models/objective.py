"""The training objective of world models: cross-entropy on image tokens, more for the places that change.

Qiu et al., arXiv 2506.06006, section 3: token l of next_obs weighs `w_l = ||z_obs^l - z_next^l||^2` over the features z
before quantization, so that copying obs is not the cheapest way to a low loss.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def change_weights(distances: torch.Tensor, floor: float) -> torch.Tensor:
    """Weights of an image's tokens from their squared feature distances, shape (batch, tokens), mean 1 per image.

    `floor` in [0, 1] is the least weight of a token, as a share of the mean: 1 weighs all alike; with 0 places that do
    not change are not learned at all. An image in which nothing changes weighs all tokens alike.
    """
    mean = distances.mean(-1, keepdim=True)
    tiny = torch.finfo(distances.dtype).tiny
    relative = torch.where(mean > tiny, distances / mean.clamp(min=tiny), 1.0)
    return floor + (1 - floor) * relative


def image_token_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Mean cross-entropy over labeled positions, each weighted where weights are given.

    `logits`, shape (batch, positions, vocabulary), predict `labels`, int64, shape (batch, positions), -100 for none.
    `weights`, shape (batch, labels per row), are those of a row's labeled positions in order. Without weights this is
    the loss of transformers' `forward`.
    """
    losses = functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
    counted = labels.flatten() != -100
    losses = losses[counted]
    return (losses if weights is None else losses * weights.flatten()).mean()
