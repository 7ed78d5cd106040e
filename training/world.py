"""A world model in training: image tokens of next_obs from obs and the action, over codes that were made before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lake.metrics import TRAIN_TOKENS
from models.objective import change_weights, image_token_loss
from models.settings import Dtype, WorldSettings
from models.world_loading import assemble_world, world_family
from training.loop import Forward
from training.settings import WorldTraining
from training.weights import choose_trained

COLUMNS = ["triple_id", "tokenizer_id", "obs_codes", "next_codes", "distances"]
"""Of the table `tokens`."""


class WorldTask:
    """A world model in training. Its image tokenizer is not trained: the codes it made are the data.

    Raises ModelRefused where the model cannot be used.
    """

    def __init__(self, settings: WorldTraining, folder: Path) -> None:
        self._floor = settings.floor
        dtype: Dtype = "bfloat16" if settings.precision == "bfloat16" else "float32"
        self.world = assemble_world(WorldSettings(image_size=settings.image_size), folder, dtype, "cpu")
        family, model = world_family(folder), self.world.model
        self.trained_as = {"image_size": self.world.image_size}
        self.model: nn.Module = model
        self.outside = family.frozen(model)
        self.adapted = choose_trained(model, settings, self.outside, family.adapted)

    def loss(self, forward: Forward, batch: dict[str, Any]) -> torch.Tensor:
        """See `Task`. `batch` is what `decode_tokens` made, with `action` texts."""
        inputs, labels = self.world.sequences(batch["obs"], batch["action"], batch["next_obs"])
        TRAIN_TOKENS.record(inputs["input_ids"].numel(), task="world")
        keep = self.world.next_tokens
        # Only the logits that the labels are for: those of a whole sequence are the largest tensor of all.
        logits = forward(**inputs, logits_to_keep=keep + 1, use_cache=False).logits[:, :-1]
        weights = None
        if self._floor is not None:
            weights = change_weights(torch.tensor(batch["distances"]), self._floor).to(logits.device)
        return image_token_loss(logits, labels[:, -keep:], weights)
