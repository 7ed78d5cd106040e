"""Models with random weights, as folders that `--model hf:` takes: what they say means nothing, what they cost does."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from bench.gpu_label import write_qwen
from models.folders import BUILTIN

_SIZES = {"num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 12}


QWEN = {"qwen2.5-vl-3b": "3b", "qwen2.5-vl-7b": "7b", "tiny-qwen": "tiny"}
NAMES = ("builtin", "larger", *QWEN)


def write(name: str, folder: Path) -> str:
    """Save the model. Returns it as `--model` of `worldlake serve` names it."""
    if name == "builtin":
        return name
    if name == "larger":
        _write_larger(folder)
    else:
        write_qwen(QWEN[name], folder)
    return f"hf:{folder}"


def _write_larger(folder: Path) -> None:
    """The builtin model's class, several times its size."""
    weights = BUILTIN
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
