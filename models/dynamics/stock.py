"""Every image-text-to-text model of transformers: two images through the processor that transformers has for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from lake.errors import ModelRefused, one_line
from models.dynamics.family import DynamicsFamily, chat_template, render_chat
from models.folders import image_processor_config
from models.protocols import Images
from models.settings import ModelSettings

if TYPE_CHECKING:
    import torch


class Stock(DynamicsFamily):
    """Idefics3, SmolVLM, InternVL, Chameleon, LLaVA and all others without a family of their own."""

    def matches(self, config: dict[str, Any]) -> bool:
        """See `DynamicsFamily`."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

        return config["model_type"] in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    def image_size(self, asked: int | None, config: dict[str, Any], folder: Path) -> int:
        """See `DynamicsFamily`. The size is that of the model's image processor."""
        if asked is not None:
            return asked
        images = image_processor_config(folder)
        for setting in ("max_image_size", "crop_size", "size"):
            sizes = images.get(setting)
            if isinstance(sizes, int):
                return sizes
            for edge in ("height", "shortest_edge", "longest_edge"):
                if isinstance(sizes, dict) and sizes.get(edge):
                    return int(sizes[edge])
        size = config.get("vision_config", {}).get("image_size")
        if not isinstance(size, int):
            raise ModelRefused(f"{folder} does not say how large its images are; set image_size")
        return size

    def inputs(self, settings: ModelSettings, folder: Path, config: Any) -> StockInputs:
        """See `DynamicsFamily`."""
        return StockInputs(folder, str(settings.prompt))


class StockInputs:
    """Two images a pair through the model's own processor.

    Raises ModelRefused where the processor does not load or takes no images.
    """

    def __init__(self, folder: Path, prompt: str) -> None:
        from transformers import AutoProcessor

        try:
            self._processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            raise ModelRefused(
                f"the processor of {folder} does not load ({one_line(error, 200)}); "
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
        template = getattr(self._processor, "chat_template", None) or chat_template(folder, self.tokenizer)
        self._text, self.lead = render_chat(self.tokenizer, template, ("image", "image"), prompt) or (
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
