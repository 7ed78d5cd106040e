"""A model of the builtin one's class and several times its size, with random weights: what it says means nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

import models.builtin

_SIZES = {"num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 12}


def write(folder: Path) -> None:
    """Save it as a user would."""
    weights = Path(models.builtin.__file__).with_name("weights")
    shutil.copytree(weights, folder, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    config = AutoConfig.from_pretrained(weights)
    for name, value in _SIZES.items():
        setattr(config.text_config, name, value)
    config.text_config.num_key_value_heads = _SIZES["num_attention_heads"]
    config.text_config.layer_types = config.text_config.layer_types[:1] * _SIZES["num_hidden_layers"]
    config.vision_config.hidden_size = _SIZES["hidden_size"]
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            # transformers' initial weights are so small that every answer would be nearly the same.
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
