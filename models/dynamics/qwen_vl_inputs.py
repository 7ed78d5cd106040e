"""Inputs of the Qwen-VL family, without its processors: whole batches, and no torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lake.errors import ModelRefused
from models.dynamics.family import chat_template, render_chat
from models.dynamics.qwen_vl_patches import TEMPORAL_PATCH_SIZE, lay_out
from models.folders import image_processor_config
from models.protocols import Images

_ARGUMENTS = {"images": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}
"""Forward arguments of the family for the patches and their grid."""

_FRAME_TIME = "<0.5 seconds>"
"""Qwen3-VL's processor writes the mean time of both frames before them; they count as one second apart."""


class QwenInputs:
    """Lays pairs out on the device. Raises ModelRefused where the tokenizer lacks what the layout needs."""

    def __init__(
        self, folder: Path, config: Any, tokenizer: PreTrainedTokenizerBase, size: int, layout: str, prompt: str
    ) -> None:
        self.tokenizer = tokenizer
        self._layout = layout
        images = image_processor_config(folder)
        vision = config.vision_config
        self._patching = {
            "patch_size": vision.patch_size,
            "merge_size": vision.spatial_merge_size,
            "mean": images["image_mean"],
            "std": images["image_std"],
        }
        kinds: tuple[str, ...] = ("video",) if layout == "video" else ("image", "image")
        pad_id = config.video_token_id if layout == "video" else config.image_token_id
        pad = tokenizer.convert_ids_to_tokens(pad_id)
        if pad is None:
            raise ModelRefused(f"the tokenizer in {folder} has no {kinds[0]} token (id {pad_id}); download it again")
        text, self.lead = render_chat(tokenizer, chat_template(folder, tokenizer), kinds, prompt) or (
            f"<|vision_start|>{pad}<|vision_end|>" * len(kinds) + prompt,
            "",
        )
        if layout == "video" and config.model_type.startswith("qwen3"):
            text = text.replace(pad, f"{_FRAME_TIME}<|vision_start|>{pad}<|vision_end|>", 1)
        if text.count(pad) != len(kinds):
            raise ModelRefused(
                f"the model's chat template leaves {text.count(pad)} places for {len(kinds)} {kinds[0]} input(s); "
                f"try pair_layout {'images' if layout == 'video' else 'video'}"
            )
        tokens_per_input = (size // vision.patch_size // vision.spatial_merge_size) ** 2
        ids: list[int] = tokenizer(text.replace(pad, pad * tokens_per_input))["input_ids"]
        self._ids = torch.tensor(ids)
        self._kinds = (self._ids == config.image_token_id).int() + 2 * (self._ids == config.video_token_id).int()

    def __call__(self, obs: Images, next_obs: Images, device: torch.device) -> dict[str, torch.Tensor]:
        """See `PairInputs`."""
        batch, size = obs.shape[:2]
        # Bytes travel to the device and are laid out there: floats are four times as many, and hosts slow with them.
        frames = torch.from_numpy(np.stack([obs, next_obs], axis=1)).to(device, non_blocking=True)
        if self._layout == "images":
            frames = frames.flatten(0, 1)[:, None].expand(-1, TEMPORAL_PATCH_SIZE, -1, -1, -1)
        cells = size // self._patching["patch_size"]
        grid = torch.tensor([[1, cells, cells]], device=device).repeat(len(frames), 1)
        pixels, grids = _ARGUMENTS[self._layout]
        return {
            "input_ids": self._ids.to(device).repeat(batch, 1),
            "attention_mask": torch.ones(batch, len(self._ids), dtype=torch.long, device=device),
            "mm_token_type_ids": self._kinds.to(device).repeat(batch, 1),
            pixels: lay_out(frames, **self._patching),
            grids: grid,
        }
