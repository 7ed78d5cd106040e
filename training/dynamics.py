"""A dynamics model in training: the action between two frames, token by token."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lake.metrics import TRAIN_TOKENS
from models.dynamics import family_of
from models.huggingface import HuggingFaceDynamics
from models.loading import load_dynamics
from models.settings import ModelSettings
from training.loop import Forward
from training.settings import DynamicsTraining
from training.weights import choose_trained

PAIR_COLUMNS = ["triple_id", "video_id", "obs", "next_obs"]
"""Of the table `triples`."""


def model_settings(settings: DynamicsTraining) -> ModelSettings:
    """How labeling would ask the model that is trained, so that it is trained on what it will be asked."""
    return ModelSettings(
        name=settings.model,
        prompt=settings.prompt,
        revision=settings.revision,
        image_size=settings.image_size,
        pair_layout=settings.pair_layout,
        dtype="bfloat16" if settings.precision == "bfloat16" else "float32",
        # Only for the look at the model when it is loaded: three pairs.
        batch_size=3,
    )


def load_task(settings: DynamicsTraining, device: torch.device) -> DynamicsTask:
    """The model that settings name, in training. Raises ModelRefused where it cannot be used."""
    dynamics = load_dynamics(model_settings(settings), str(device))
    assert isinstance(dynamics, HuggingFaceDynamics)
    return DynamicsTask(dynamics, settings)


class DynamicsTask:
    """A Hugging Face model in training."""

    def __init__(self, dynamics: HuggingFaceDynamics, settings: DynamicsTraining) -> None:
        self._dynamics = dynamics
        self.trained_as = {
            "prompt": settings.prompt,
            "image_size": dynamics.image_size,
            "pair_layout": settings.pair_layout,
        }
        self.model: nn.Module = dynamics.model
        self.outside: frozenset[nn.Parameter] = frozenset()
        family = family_of(dynamics.model.config.to_dict())
        assert family is not None
        self.adapted = choose_trained(dynamics.model, settings, self.outside, family.adapted)

    def loss(self, forward: Forward, batch: dict[str, Any]) -> torch.Tensor:
        """See `Task`. `batch` is what `DecodePairs` made, with `action` texts.

        Every pair weighs the same, however long its action: the mean over its tokens is what `score` measures.
        """
        inputs, labels = self._dynamics.sequences(batch["obs"], batch["next_obs"], batch["action"])
        TRAIN_TOKENS.record(inputs["input_ids"].numel(), task="dynamics")
        logits = forward(**inputs, logits_to_keep=labels.shape[1] + 1, use_cache=False).logits
        logits = logits[:, -labels.shape[1] - 1 : -1].float()
        losses = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
        return (losses.sum(-1) / (labels != -100).sum(-1)).mean()
