"""Train the image tokenizer of the builtin world model: a stock Emu3VQVAE on frames of the sample world.

The class has no loss of its own. What is here: reconstruction by straight-through quantization with a codebook of
moving averages (van den Oord et al., arXiv 1711.00937, appendix A.1), started by k-means after a warm-up without
quantization; codes that nobody uses are put back among the features. A penalty keeps the features of patches that did
not change alike in both frames of a pair: group norms see the whole image, so that else one moved shape changes every
code.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import Emu3VQVAE, Emu3VQVAEConfig

from models.builtin.train import (
    EVALUATION_CLIPS,
    FIRST_EVALUATION_SEED,
    joined,
    learning_rate,
    read_shards,
    resume,
    save,
    training_batch,
)
from models.image_tokens import ImageTokenizer
from models.verification import resized
from sample_world.pairs import Pairs, clip_pairs

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


def fit(arguments: argparse.Namespace) -> None:
    """Train for `--steps` steps, with a checkpoint and an evaluation every `--every`."""
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    vq, codebook = new_vq().requires_grad_(True), Codebook()
    vq.quantize.embedding.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in vq.parameters() if p.requires_grad], betas=(0.9, 0.99), weight_decay=0.0)
    both = nn.ModuleDict({"vq": vq, "codebook": codebook})
    tokenizer = ImageTokenizer(vq, image_size=IMAGE_SIZE, mean=MEAN, std=STD)
    pairs = shrunk(read_shards(arguments.data, arguments.shards))
    held_out = shrunk(joined([clip_pairs(FIRST_EVALUATION_SEED + i) for i in range(EVALUATION_CLIPS)]))
    first = resume(arguments.out, both, optimizer)
    started, total = time.monotonic(), 0.0
    for step in range(first, arguments.steps):
        generator = torch.Generator().manual_seed(step)
        loss = _loss(vq, codebook, tokenizer, training_batch(pairs, step, arguments.batch), step, generator)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(vq.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, arguments.steps, arguments.peak, warmup=100)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total += loss.item()
        if (step + 1) % arguments.every == 0 or step + 1 == arguments.steps:
            figures = {"step": step + 1, "s": round(time.monotonic() - started), "loss": total / arguments.every}
            print(json.dumps(figures | evaluate(tokenizer, held_out)), flush=True)
            total = 0.0
            save(arguments.out, step + 1, both, optimizer)


def _loss(
    vq: Any, codebook: Codebook, tokenizer: ImageTokenizer, pairs: Pairs, step: int, generator: torch.Generator
) -> torch.Tensor:
    images = tokenizer.pixels(np.concatenate([pairs.frames[pairs.index[:, 0]], pairs.frames[pairs.index[:, 1]]]))
    with torch.autocast("cpu", torch.bfloat16):
        features = tokenizer.features(images).float()
    flat = features.detach().flatten(0, 1)
    quantized = features
    if step >= WARM_UP:
        embedding = vq.quantize.embedding.weight
        with torch.no_grad():
            if step == WARM_UP:
                codebook.start(embedding, flat, generator)
            codes = torch.cdist(flat, embedding).argmin(1)
            chosen = embedding[codes].view_as(features)
            codebook.update(embedding, flat, codes, generator)
        quantized = features + (chosen - features).detach()
    grid = quantized.transpose(1, 2).reshape(len(images), CHANNELS, 1, tokenizer.side, tokenizer.side)
    with torch.autocast("cpu", torch.bfloat16):
        decoded = vq.decoder(vq.post_quant_conv(grid).permute(0, 2, 1, 3, 4), grid.permute(0, 2, 1, 3, 4))
    (before, after), (obs, next_obs) = features.chunk(2), images.chunk(2)
    difference = decoded.float().reshape(images.shape) - images
    weights = _change_weights(obs, next_obs).repeat(2, 1, 1, 1)
    loss = (weights * (difference.square() + 0.1 * difference.abs())).mean()
    if step >= WARM_UP:
        loss = loss + COMMITMENT * functional.mse_loss(features, chosen) / flat.var(0).mean()
    still = unchanged_patches(obs, next_obs, tokenizer.image_size // tokenizer.side)
    drift = (before - after).square().mean(-1) / flat.var(0).mean()
    total: torch.Tensor = loss + STILLNESS * (drift * still).sum() / still.sum().clamp(min=1)
    return total


def _change_weights(obs: torch.Tensor, next_obs: torch.Tensor) -> torch.Tensor:
    """Weights of pixels, shape (batch, 1, height, width), mean 1 per image: more where the frames of a pair differ."""
    changed = ((obs - next_obs).abs().amax(1, keepdim=True) / 2 > CHANGED).float()
    weights = 1 + CHANGE * functional.max_pool2d(changed, 3, 1, 1)
    return weights / weights.mean((2, 3), keepdim=True)


def shrunk(pairs: Pairs) -> Pairs:
    """The pairs at the size of the tokenizer."""
    return Pairs(resized(pairs.frames, IMAGE_SIZE), pairs.index, pairs.actions)


def evaluate(tokenizer: ImageTokenizer, pairs: Pairs) -> dict[str, float]:
    """PSNR in dB, codes in use, and the shares of codes that differ where patches are unchanged and where not."""
    obs, after = (pairs.frames[pairs.index[:, i]] for i in (0, 1))
    codes, next_codes = tokenizer.encode(obs)[0], tokenizer.encode(after)[0]
    error = np.square((tokenizer.decode(codes).astype(np.float32) - obs) / 255).mean((1, 2, 3))
    patch = tokenizer.image_size // tokenizer.side
    still = unchanged_patches(tokenizer.pixels(obs), tokenizer.pixels(after), patch).bool().numpy()
    return {
        "psnr": round(float(-10 * np.log10(error).mean()), 2),
        "codes": len(np.unique(codes)),
        "differ where unchanged": round(float((codes != next_codes)[still].mean()), 4),
        "differ where changed": round(float((codes != next_codes)[~still].mean()), 4),
    }


def load(out: Path) -> Emu3VQVAE:
    """The tokenizer of the last checkpoint."""
    vq = new_vq()
    both = nn.ModuleDict({"vq": vq, "codebook": Codebook()})
    both.load_state_dict(torch.load(out / "checkpoint.pt", weights_only=True)["model"])
    return vq.requires_grad_(False)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m models.builtin.train_tokenizer", description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=Path("scratch/builtin/data"), help="shards of models.builtin.train"
    )
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("scratch/builtin/tokenizer"), help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=16, help="pairs")
    parser.add_argument("--peak", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--every", type=int, default=250, help="steps between checkpoints with an evaluation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    fit(parser.parse_args())


if __name__ == "__main__":
    main()
