"""Choose the weights of a model that are trained, and write the trained model as `models` loads it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.folders import TRAINED_AS, WANTED
from training.loop import Task
from training.settings import TrainingSettings


def choose_trained(model: Any, settings: TrainingSettings, frozen: frozenset[nn.Parameter], adapted: str) -> Any | None:
    """Let the weights that `settings.method` names require gradients, and no others; `frozen` never do.

    `adapted` is the regular expression of the modules that get a LoRA adapter.

    Returns PEFT's view of the model for LoRA, whose layers it put into it, and None for full.
    """
    if settings.method == "full":
        for weight in model.parameters():
            weight.requires_grad_(weight not in frozen)
        return None
    from peft import LoraConfig, get_peft_model

    # Adapters begin the same on every worker and in every attempt.
    torch.manual_seed(settings.seed)
    return get_peft_model(
        model.requires_grad_(False),
        LoraConfig(
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            target_modules=adapted,
        ),
    )


def export(task: Task, weights: dict[str, torch.Tensor], base: Path, out: Path) -> None:
    """Write a folder that `models` loads: a model like the one in `base`, or the adapter to it.

    `weights` are those of `task.model.state_dict()`, whole. The tokenizer and the processor are the base's.
    """
    model: Any = task.model
    out.mkdir(parents=True, exist_ok=True)
    (out / TRAINED_AS).write_text(json.dumps(task.trained_as, indent=1) + "\n")
    if task.adapted is not None:
        adapter = {f"base_model.model.{name}": weight for name, weight in weights.items() if "lora_" in name}
        task.adapted.save_pretrained(out, state_dict=adapter, safe_serialization=True)
        return
    model.save_pretrained(out, state_dict=weights, safe_serialization=True)
    for path in sorted(path for pattern in WANTED for path in base.glob(pattern)):
        if not re.search(r"\.safetensors|^config\.json$", path.name) and path.name != TRAINED_AS:
            shutil.copy2(path, out / path.name)
