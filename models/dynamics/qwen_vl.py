"""The Qwen-VL family: a pair as one video of two frames, which meet in the first layer, or as two images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lake.errors import ModelRefused
from models.dynamics.family import DynamicsFamily
from models.folders import image_processor_config
from models.settings import ModelSettings
from models.weights import load_tokenizer

if TYPE_CHECKING:
    from models.dynamics.qwen_vl_inputs import QwenInputs

DEFAULT_IMAGE_SIZE = 448
"""Pixels; the models take any size: 256 visual tokens for a pair in Qwen2.5-VL."""


class QwenVL(DynamicsFamily):
    """Models whose patch embedding spans two frames and whose patch layout is `qwen_vl_patches`."""

    pair_layouts = ("video", "images")

    def matches(self, config: dict[str, Any]) -> bool:
        """See `DynamicsFamily`."""
        return config["model_type"] in {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"}

    def image_size(self, asked: int | None, config: dict[str, Any], folder: Path) -> int:
        """See `DynamicsFamily`. By default at most DEFAULT_IMAGE_SIZE, within the area that the model was made for."""
        images = image_processor_config(folder)
        vision = config.get("vision_config", {})
        if "image_mean" not in images or "image_std" not in images:
            raise ModelRefused(
                f"{folder} has no preprocessor_config.json with image_mean and image_std; download it again"
            )
        block = int(vision.get("patch_size", 14)) * int(vision.get("spatial_merge_size", 2))
        if asked is not None:
            if asked % block:
                near = max(block, round(asked / block) * block)
                raise ModelRefused(f"image_size {asked} is not a multiple of the model's {block} pixels; use {near}")
            return asked
        area = images.get("size") or {}
        most = cast("int | None", area.get("longest_edge") or images.get("max_pixels"))
        edge = min(DEFAULT_IMAGE_SIZE, int(most**0.5)) if most else DEFAULT_IMAGE_SIZE
        return max(block, edge // block * block)

    def inputs(self, settings: ModelSettings, folder: Path, config: Any) -> QwenInputs:
        """See `DynamicsFamily`."""
        from models.dynamics.qwen_vl_inputs import QwenInputs

        assert settings.image_size is not None
        tokenizer, layout = load_tokenizer(folder), settings.pair_layout
        return QwenInputs(folder, config, tokenizer, settings.image_size, layout, str(settings.prompt))

    def prepare(self, model: Any) -> Any:
        """See `DynamicsFamily`."""
        from models.dynamics.qwen_vl_patches import CHUNKED_ATTENTION

        model.set_attn_implementation({"vision_config": CHUNKED_ATTENTION})
        return model
