"""Images as grids of discrete codes: the frozen VQ tokenizer of an Emu3 model (Wang et al., arXiv 2409.18869)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.protocols import Codes, Images

_BATCH = 64
"""Images that go through the convolutions at once: their activations are some hundred times the images."""


class Emu3Images:
    """`Emu3VQVAE` for square images of one size.

    `hold` is the squared distance of features up to which a place of a pair counts as unchanged: see `encode_pairs`.
    Raises ValueError where the size is not a multiple of the tokenizer's patch.
    """

    def __init__(
        self, vq: Any, *, image_size: int, mean: Sequence[float], std: Sequence[float], hold: float = 0.0
    ) -> None:
        patch = int(vq.spatial_scale_factor)
        if image_size % patch:
            raise ValueError(f"image size {image_size} is not a multiple of {patch}")
        self.image_size = image_size
        self.side = image_size // patch
        """Codes in a row, and in a column."""
        self.codebook_size = int(vq.config.codebook_size)
        self.identity: Mapping[str, Any] = {
            "image_size": image_size,
            "mean": list(mean),
            "std": list(std),
            "hold": hold,
        }
        """The version of everything but the weights that decides the codes of a pair."""
        self.hold = hold
        self.vq = vq
        self._mean = torch.tensor(mean, dtype=torch.float32, device=vq.device).view(3, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32, device=vq.device).view(3, 1, 1)

    def weights(self) -> dict[str, torch.Tensor]:
        """See `ImageTokenizer`."""
        return dict(self.vq.state_dict())

    def pixels(self, images: Images) -> torch.Tensor:
        """Normalized float32 pixels, shape (batch, 3, height, width), on the tokenizer's device."""
        tensor = torch.from_numpy(np.ascontiguousarray(images)).to(self._mean.device).permute(0, 3, 1, 2)
        return (tensor.float() / 255 - self._mean) / self._std

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the features before quantization: float, shape (batch, rows * columns, channels)."""
        hidden = self.vq.encoder(pixels.to(self.vq.dtype).unsqueeze(1))
        latents = self.vq.quant_conv(hidden.permute(0, 2, 1, 3, 4))
        features: torch.Tensor = latents.squeeze(2).flatten(2).transpose(1, 2)
        return features

    @torch.no_grad()
    def encode(self, images: Images) -> tuple[Codes, npt.NDArray[np.float32]]:
        """Codes and the features before quantization, float32, shape (batch, rows * columns, channels).

        `images` are uint8 RGB of the tokenizer's size; ValueError for others.
        """
        if images.dtype != np.uint8 or images.shape[1:] != (self.image_size, self.image_size, 3):
            raise ValueError(f"images are {images.dtype} {images.shape[1:]}, not uint8 of {self.image_size} pixels")
        codes, features = [], []
        for start in range(0, len(images), _BATCH):
            latents = self.features(self.pixels(images[start : start + _BATCH]))
            features.append(latents.float().cpu().numpy())
            grid = latents.transpose(1, 2).reshape(len(latents), 1, -1, self.side, self.side)
            codes.append(self.vq.quantize(grid).flatten(1).to(torch.int32).cpu().numpy())
        return np.concatenate(codes), np.concatenate(features)

    def encode_pairs(self, obs: Images, next_obs: Images) -> tuple[Codes, Codes, npt.NDArray[np.float32]]:
        """Codes of both images of pairs, and squared distances of their features, float32, shape of the codes.

        Noise takes a feature near the border of two codes across it. So next_obs keeps obs's code wherever the distance
        is below `hold`: else a world model would learn to predict noise. With `hold` 0 each image is coded alone.
        ValueError as `encode`.
        """
        codes, z_obs = self.encode(obs)
        next_codes, z_next = self.encode(next_obs)
        distances = np.square(z_obs - z_next).sum(-1)
        return codes, np.where(distances < self.hold, codes, next_codes), distances

    @torch.no_grad()
    def decode(self, codes: Codes) -> Images:
        """Images of codes, uint8 RGB, shape (batch, image_size, image_size, 3)."""
        images = []
        for start in range(0, len(codes), _BATCH):
            grid = torch.from_numpy(np.ascontiguousarray(codes[start : start + _BATCH], np.int64))
            pixels = self.vq.decode(grid.view(-1, self.side, self.side).to(self._mean.device)).float()
            pixels = ((pixels * self._std + self._mean) * 255).round().clamp(0, 255)
            images.append(pixels.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy())
        return np.concatenate(images)
