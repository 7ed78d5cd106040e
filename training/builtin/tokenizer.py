"""Train the image tokenizer of the builtin world model: a stock Emu3VQVAE on frames of the sample world.

The class has no loss of its own. What is here: reconstruction by straight-through quantization with a codebook of
moving averages (van den Oord et al., arXiv 1711.00937, appendix A.1), started by k-means after a warm-up without
quantization; codes that nobody uses are put back among the features. A penalty keeps the features of patches that did
not change alike in both frames of a pair: group norms see the whole image, so that else one moved shape changes every
code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import Emu3VQVAE, Emu3VQVAEConfig

from models.world.emu3_images import Emu3Images
from sample_world.pairs import Pairs
from training.builtin.data import held_out, read_shards, shrunk, training_batch
from training.builtin.train_loop import Recipe, train, trained_weights
from training.loop import Forward
from training.settings import TrainingSettings

IMAGE_SIZE = 32
"""Pixels. Frames have 64: half of them cost a quarter to learn, and the oracle and the builtin dynamics model name the
actions of true frames that were shrunk and enlarged as they do those of the frames themselves."""
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CODES, CHANNELS = 1024, 16
WARM_UP = 150
"""Steps without quantization, which give k-means features worth clustering."""
DECAY = 0.99
COMMITMENT = 0.25
STILLNESS = 1.0
"""Weight of the penalty on unchanged patches."""
CHANGE = 4.0
"""Weight of a pixel that the action changed, beside 1 for all: with equal weights, most codes tell textures apart."""
STILL = 3 / 255
"""Mean absolute difference of a patch's pixels below which it counts as unchanged: codec and JPEG noise stay below."""
CHANGED = 16 / 255
"""Difference of a pixel's most different channel above which it counts as changed."""


def new_vq() -> Emu3VQVAE:
    """The untrained tokenizer: 8 x 8 codes of a 32 x 32 image, 1.0 M parameters."""
    return Emu3VQVAE(
        Emu3VQVAEConfig(
            base_channels=32,
            channel_multiplier=[1, 2, 2],
            num_res_blocks=1,
            attn_resolutions=[],
            temporal_downsample_factor=1,
            codebook_size=CODES,
            embed_dim=CHANNELS,
            latent_channels=CHANNELS,
            hidden_size=64,
        )
    )


class Codebook(nn.Module):
    """The moving averages behind the codes, over `vq.quantize.embedding`."""

    counts: torch.Tensor
    sums: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("counts", torch.ones(CODES))
        self.register_buffer("sums", torch.zeros(CODES, CHANNELS))

    def start(self, embedding: torch.Tensor, features: torch.Tensor, generator: torch.Generator) -> None:
        """K-means over `features`, shape (n, channels), from random ones of them."""
        centers = features[torch.randperm(len(features), generator=generator)[:CODES]].clone()
        for _ in range(20):
            nearest = torch.cdist(features, centers).argmin(1)
            counts = torch.bincount(nearest, minlength=CODES).float()
            sums = torch.zeros_like(centers).index_add_(0, nearest, features)
            centers = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centers)
        self.counts.fill_(len(features) / CODES)
        self.sums.copy_(centers * self.counts[:, None])
        embedding.copy_(centers)

    def update(
        self, embedding: torch.Tensor, features: torch.Tensor, codes: torch.Tensor, generator: torch.Generator
    ) -> None:
        """Move the averages towards the features of a batch, and codes that are hardly used onto random features."""
        counts = torch.bincount(codes, minlength=CODES).float()
        self.counts.mul_(DECAY).add_(counts, alpha=1 - DECAY)
        self.sums.mul_(DECAY).add_(torch.zeros_like(self.sums).index_add_(0, codes, features), alpha=1 - DECAY)
        dead = (self.counts < 0.3).nonzero()[:, 0]
        fresh = features[torch.randint(len(features), (len(dead),), generator=generator)]
        self.counts[dead] = 1.0
        self.sums[dead] = fresh
        embedding.copy_(self.sums / self.counts[:, None])


def unchanged_patches(obs: torch.Tensor, next_obs: torch.Tensor, patch: int) -> torch.Tensor:
    """Which patches look alike in both frames: float 0 or 1, shape (batch, rows * columns), of pixels in [-1, 1]."""
    difference = (obs - next_obs).abs().mean(1, keepdim=True) / 2
    return (functional.avg_pool2d(difference, patch) < STILL).flatten(1).float()


class TokenizerTask:
    """The tokenizer in training, as `training.loop.Task`."""

    trained_as: dict[str, Any]
    outside: frozenset[nn.Parameter] = frozenset()
    adapted = None

    def __init__(self) -> None:
        self.trained_as = {"image_size": IMAGE_SIZE}
        self._vq, self._codebook = new_vq().requires_grad_(True), Codebook()
        self._vq.quantize.embedding.requires_grad_(False)
        self.model: nn.Module = nn.ModuleDict({"vq": self._vq, "codebook": self._codebook})
        self.images = Emu3Images(self._vq, image_size=IMAGE_SIZE, mean=MEAN, std=STD)

    def loss(self, forward: Forward, batch: dict[str, Any]) -> torch.Tensor:
        """See `Task`. `batch` has uint8 `obs` and `next_obs`, and the number of the `step`."""
        # Its batch norms keep the statistics they begin with, also while it learns.
        self._vq.eval()
        step, images = batch["step"], self.images.pixels(np.concatenate([batch["obs"], batch["next_obs"]]))
        with torch.autocast("cpu", torch.bfloat16):
            features = self.images.features(images).float()
        flat = features.detach().flatten(0, 1)
        spread = flat.var(0).mean()
        quantized, commitment = features, torch.zeros(())
        if step >= WARM_UP:
            chosen = self._quantize(flat, step).view_as(features)
            quantized = features + (chosen - features).detach()
            commitment = COMMITMENT * functional.mse_loss(features, chosen) / spread
        (before, after), (obs, next_obs) = features.chunk(2), images.chunk(2)
        difference = self._decode(quantized).reshape(images.shape) - images
        weights = _change_weights(obs, next_obs).repeat(2, 1, 1, 1)
        loss = (weights * (difference.square() + 0.1 * difference.abs())).mean() + commitment
        still = unchanged_patches(obs, next_obs, IMAGE_SIZE // self.images.side)
        drift = (before - after).square().mean(-1) / spread
        total: torch.Tensor = loss + STILLNESS * (drift * still).sum() / still.sum().clamp(min=1)
        return total

    @torch.no_grad()
    def _quantize(self, features: torch.Tensor, step: int) -> torch.Tensor:
        """The codes' vectors nearest to `features`, shape (n, channels), of which the codebook then learns."""
        generator, embedding = torch.Generator().manual_seed(step), self._vq.quantize.embedding.weight
        if step == WARM_UP:
            self._codebook.start(embedding, features, generator)
        codes = torch.cdist(features, embedding).argmin(1)
        chosen: torch.Tensor = embedding[codes]
        self._codebook.update(embedding, features, codes, generator)
        return chosen

    def _decode(self, features: torch.Tensor) -> torch.Tensor:
        """Pixels, float32, of features, shape (batch, codes of an image, channels)."""
        side = self.images.side
        grid = features.transpose(1, 2).reshape(len(features), CHANNELS, 1, side, side)
        with torch.autocast("cpu", torch.bfloat16):
            latents = self._vq.post_quant_conv(grid).permute(0, 2, 1, 3, 4)
            decoded: torch.Tensor = self._vq.decoder(latents, grid.permute(0, 2, 1, 3, 4))
        return decoded.float()


def fit(recipe: Recipe) -> None:
    """Train for `recipe.steps` steps on shards that `generate` wrote. Raises FileNotFoundError where one is missing."""
    pairs = shrunk(read_shards(recipe.folder / "data", recipe.shards), IMAGE_SIZE)
    unseen = shrunk(held_out(), IMAGE_SIZE)
    torch.manual_seed(recipe.seed)
    task = TokenizerTask()
    settings = TrainingSettings(precision="float32", warmup_steps=100, weight_decay=0.0, **recipe.settings())

    def batch(step: int) -> dict[str, Any]:
        drawn = training_batch(pairs, step, recipe.batch)
        obs, next_obs = (drawn.frames[drawn.index[:, i]] for i in (0, 1))
        return {"obs": obs, "next_obs": next_obs, "step": step}

    train(task, settings, batch, lambda: evaluate(task.images, unseen), recipe.folder / "tokenizer", recipe.every)


def _change_weights(obs: torch.Tensor, next_obs: torch.Tensor) -> torch.Tensor:
    """Weights of pixels, shape (batch, 1, height, width), mean 1 per image: more where the frames of a pair differ."""
    changed = ((obs - next_obs).abs().amax(1, keepdim=True) / 2 > CHANGED).float()
    weights = 1 + CHANGE * functional.max_pool2d(changed, 3, 1, 1)
    return weights / weights.mean((2, 3), keepdim=True)


def evaluate(images: Emu3Images, pairs: Pairs) -> dict[str, float]:
    """PSNR in dB, codes in use, and the shares of codes that differ where patches are unchanged and where not."""
    obs, after = (pairs.frames[pairs.index[:, i]] for i in (0, 1))
    codes, next_codes = images.encode(obs)[0], images.encode(after)[0]
    error = np.square((images.decode(codes).astype(np.float32) - obs) / 255).mean((1, 2, 3))
    patch = images.image_size // images.side
    still = unchanged_patches(images.pixels(obs), images.pixels(after), patch).bool().numpy()
    return {
        "psnr": round(float(-10 * np.log10(error).mean()), 2),
        "codes": len(np.unique(codes)),
        "differ where unchanged": round(float((codes != next_codes)[still].mean()), 4),
        "differ where changed": round(float((codes != next_codes)[~still].mean()), 4),
    }


def trained_vq(folder: Path) -> Emu3VQVAE:
    """The tokenizer of the last checkpoint, frozen."""
    task = TokenizerTask()
    task.model.load_state_dict(trained_weights(folder / "tokenizer"))
    return task.images.vq.requires_grad_(False)
