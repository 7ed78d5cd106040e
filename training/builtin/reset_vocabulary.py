"""The builtin models as they were before anybody named an action to them: what `worldlake demo --full` starts from.

A vision-language model has seen much and does not know how a team calls what happens in its videos. The builtin models
know every name of the sample world; with new random embeddings of all words they see as well as before, and have to
be taught the names.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Emu3ForConditionalGeneration, Qwen2VLForConditionalGeneration
from transformers.utils.logging import disable_progress_bar

from models.folders import BUILTIN
from models.world_loading import BUILTIN_WORLD
from sample_world.pairs import all_actions


def write_dynamics(folder: Path, seed: int) -> None:
    """Write the builtin dynamics model without its words, as `models.loading` reads it."""
    _write(Qwen2VLForConditionalGeneration, BUILTIN, folder, seed)


def write_world(folder: Path, seed: int) -> None:
    """Write the builtin world model without its words, as `models.world_loading` reads it."""
    _write(Emu3ForConditionalGeneration, BUILTIN_WORLD, folder, seed)


@torch.no_grad()
def _write(kind: Any, builtin: Path, folder: Path, seed: int) -> None:
    disable_progress_bar()
    model = kind.from_pretrained(builtin, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(builtin, local_files_only=True)
    words = tokenizer.convert_tokens_to_ids(sorted({word for action in all_actions() for word in action.split()}))
    embeddings = model.get_input_embeddings().weight
    drawn = torch.randn(len(words), embeddings.shape[1], generator=torch.Generator().manual_seed(seed))
    embeddings[words] = (drawn * embeddings[words].float().std()).to(embeddings.dtype)
    model.save_pretrained(folder)
    for path in builtin.iterdir():
        if not (folder / path.name).exists():
            shutil.copy2(path, folder / path.name)
