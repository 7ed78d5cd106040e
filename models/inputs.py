"""From a batch of frame pairs to what a Hugging Face model's forward takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, PreTrainedTokenizerBase

from lake.errors import ModelRefused
from models.folders import image_processor_config, read_json
from models.protocols import Images
from models.qwen import TEMPORAL_PATCH_SIZE, lay_out

PairLayout = Literal["images", "video"]

_ARGUMENTS = {"images": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}
"""How the forward of the Qwen-VL family calls the patches and their grid."""

_ANSWER = "§"
"""Stands for the assistant's text while a chat template is asked what it writes before it."""

_FRAME_TIME = "<0.5 seconds>"
"""Qwen3-VL's processor writes the mean time of both frames before them; they count as one second apart."""


class PairInputs(Protocol):
    """Makes the model's prompt of every pair. The same prompt for each, so no row is ever padded before its text."""

    tokenizer: PreTrainedTokenizerBase
    lead: str
    """White space that the model writes between its prompt and its answer."""

    def __call__(self, obs: Images, next_obs: Images, device: torch.device) -> dict[str, torch.Tensor]:
        """Tensors on the device by forward argument; `input_ids` has shape (batch, prompt tokens)."""
        ...


class QwenInputs:
    """Inputs of the Qwen-VL family, without its processors: whole batches, and no torchvision."""

    def __init__(
        self, folder: Path, config: Any, tokenizer: PreTrainedTokenizerBase, size: int, layout: PairLayout, prompt: str
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
        text, self.lead = _chat(tokenizer, _chat_template(folder, tokenizer), kinds, prompt) or (
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


class StockInputs:
    """Inputs of every other family: two images through the processor that transformers has for the model."""

    def __init__(self, folder: Path, prompt: str) -> None:
        try:
            self._processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            raise ModelRefused(
                f"the processor of {folder} does not load ({_line(error)}); "
                "many need torchvision: pip install 'worldlake[torchvision]'"
            ) from error
        if not hasattr(self._processor, "image_processor"):
            raise ModelRefused(f"the processor of {folder} takes no images; name an image-text-to-text model")
        self.tokenizer = self._processor.tokenizer
        self.tokenizer.padding_side = "left"
        image_processor = self._processor.image_processor
        if hasattr(image_processor, "do_image_splitting"):
            # Tiles would multiply the visual tokens of each frame by up to 17; frames come at the size of one tile.
            image_processor.do_image_splitting = False
        template = getattr(self._processor, "chat_template", None) or _chat_template(folder, self.tokenizer)
        self._text, self.lead = _chat(self.tokenizer, template, ("image", "image"), prompt) or (
            getattr(self._processor, "image_token", "<image>") * 2 + prompt,
            "",
        )
        bos = self.tokenizer.bos_token
        self._add_special_tokens = not (bos and self._text.startswith(bos))

    def __call__(self, obs: Images, next_obs: Images, device: torch.device) -> dict[str, torch.Tensor]:
        """See `PairInputs`."""
        inputs = self._processor(
            text=[self._text] * len(obs),
            images=[[Image.fromarray(a), Image.fromarray(b)] for a, b in zip(obs, next_obs, strict=True)],
            padding=True,
            return_tensors="pt",
            add_special_tokens=self._add_special_tokens,
        )
        return {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}


def _chat_template(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Any:
    # Older repositories keep the template of the processor, which the tokenizer does not read, in a file of its own.
    return tokenizer.chat_template or read_json(folder / "chat_template.json").get("chat_template")


def _chat(
    tokenizer: PreTrainedTokenizerBase, template: Any, kinds: tuple[str, ...], prompt: str
) -> tuple[str, str] | None:
    """The prompt as the chat template renders it, and the white space that it puts before an answer."""
    if template is None:
        return None
    user = {"role": "user", "content": [*({"type": kind} for kind in kinds), {"type": "text", "text": prompt}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": _ANSWER}]}
    text: str = tokenizer.apply_chat_template(
        [user], chat_template=template, tokenize=False, add_generation_prompt=True
    )
    answered: str = tokenizer.apply_chat_template([user, answer], chat_template=template, tokenize=False)
    before, found, _ = answered.removeprefix(text).partition(_ANSWER)
    return text, before if found and before.isspace() else ""


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]
