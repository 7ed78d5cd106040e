"""Weights, adapter and input layout assembled into a dynamics model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lake.errors import ModelRefused, one_line
from models.dynamics.family import DynamicsFamily
from models.huggingface import HuggingFaceDynamics
from models.settings import Dtype, ModelSettings
from models.weights import apply_adapter, load_weights, to_device


def assemble(
    family: DynamicsFamily,
    settings: ModelSettings,
    folder: Path,
    adapter: Path | None,
    device: str,
    *,
    answers_few: bool,
) -> HuggingFaceDynamics:
    """Load the model in `folder`, by settings with nothing left open. Raises ModelRefused where it cannot be used."""
    dtype: Dtype = "bfloat16" if settings.dtype == "bfloat16" else "float32"
    assert settings.image_size is not None
    model = family.prepare(load_weights(family.model_class(), folder, dtype))
    if adapter is not None:
        model = apply_adapter(model, adapter, dtype)
    model = to_device(model, device)
    dynamics = HuggingFaceDynamics(
        model,
        family.inputs(settings, folder, model.config),
        image_size=settings.image_size,
        batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
        answers_few=answers_few,
    )
    _check_sees_both(dynamics, folder)
    return dynamics


def _check_sees_both(dynamics: HuggingFaceDynamics, folder: Path) -> None:
    """Raise ModelRefused where the scores do not depend on both images, or cannot be computed at all."""
    size = dynamics.image_size
    frames = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    try:
        scores = dynamics.score(frames[[0, 0, 1]], frames[[0, 1, 0]], ["it moves"] * 3)
    except torch.OutOfMemoryError as error:
        raise ModelRefused(
            f"the GPU has too little memory for {folder} and a batch of pairs; use a smaller --batch-size"
        ) from error
    except Exception as error:
        raise ModelRefused(
            f"{folder} does not take two images ({one_line(error, 200)}); use a model that does"
        ) from error
    if not np.isfinite(scores).all() or len(set(scores.tolist())) < 3:
        raise ModelRefused(f"{folder} does not see both images (scores {scores.tolist()}); use another model")
