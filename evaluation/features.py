"""Images as vectors of a pretrained model, to compare what they show and not their pixels: CLIP-I and DINO.

CLIP-I is the cosine of CLIP's image embeddings (as AURORA, arXiv 2407.03471, and MagicBrush before it report it), DINO
that of the class token of a self-supervised ViT (Ruiz et al., arXiv 2208.12242, section 4).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lake.errors import ModelRefused
from models.folders import check_weights, find_folder
from models.loading import best_device
from models.protocols import Images

_BATCH = 64


class ImageFeatures:
    """A CLIP-like model (one with image embeddings of its own) or a ViT (its class token), by name.

    Raises ModelRefused, with the remedy, where the model cannot be used.
    """

    def __init__(self, name: str, device: str | None = None) -> None:
        from transformers import AutoImageProcessor, AutoModel
        from transformers.utils.logging import disable_progress_bar

        self.name = name
        folder, _ = find_folder(name, None)
        check_weights(folder)
        disable_progress_bar()
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._processor: Any = AutoImageProcessor.from_pretrained(folder, **local)
            model: Any = AutoModel.from_pretrained(folder, use_safetensors=True, **local)
            self._model = model.to(device or best_device()).eval()
            shape = self._vectors(self._pixels(np.zeros((2, 64, 64, 3), np.uint8))).shape
            if len(shape) != 2 or shape[0] != 2:
                raise ValueError(f"of two images it makes features of shape {tuple(shape)}")
        except Exception as error:
            reason = str(error).strip().split("\n")[0][:200]
            raise ModelRefused(f"{name} gives no image features ({reason}): use a CLIP or DINO model") from error

    def __call__(self, images: Images) -> npt.NDArray[np.float32]:
        """Unit vectors, float32, shape (batch, channels), of images of any one size."""
        import torch

        vectors = []
        for start in range(0, len(images), _BATCH):
            with torch.no_grad():
                vectors.append(self._vectors(self._pixels(images[start : start + _BATCH])).float().cpu().numpy())
        stacked = np.concatenate(vectors)
        unit: npt.NDArray[np.float32] = stacked / np.maximum(np.linalg.norm(stacked, axis=1, keepdims=True), 1e-12)
        return unit

    def cosines(self, one: Images, other: Images) -> list[float]:
        """Cosine of the features of each pair of images, -1 to 1."""
        cosines: list[float] = (self(one) * self(other)).sum(1).tolist()
        return cosines

    def _pixels(self, images: Images) -> Any:
        return self._processor(images=list(images), return_tensors="pt")["pixel_values"].to(self._model.device)

    def _vectors(self, pixels: Any) -> Any:
        if hasattr(self._model, "get_image_features"):
            embedded = self._model.get_image_features(pixel_values=pixels)
            return getattr(embedded, "pooler_output", embedded)
        # Not the pooler's output: checkpoints of DINO have no pooler, and transformers would make a random one.
        return self._model(pixel_values=pixels).last_hidden_state[:, 0]
