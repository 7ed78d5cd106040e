"""The patch layout of the Qwen-VL family, for batches of images of one size.

transformers' own Qwen-VL processors need torchvision, resize one image at a time and never put two given frames
into one temporal patch. The layout here is theirs (Qwen2VLVideoProcessor.preprocess), for whole batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

TEMPORAL_PATCH_SIZE = 2
"""Frames that meet in one patch; the same in every Qwen-VL model."""


def lay_out(
    frames: torch.Tensor, *, patch_size: int, merge_size: int, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """Normalized patches of `frames`, uint8 RGB of shape (videos, 2, height, width, 3), on the device they are on.

    `mean` and `std` are per channel, for pixels in [0, 1]. Returns float32, shape (videos * grid_h * grid_w,
    3 * 2 * patch_size**2); rows run over merge blocks of `merge_size**2` patches. Raises ValueError where the frames
    are not a multiple of `patch_size * merge_size`.
    """
    videos, slots, height, width, channels = frames.shape
    block = patch_size * merge_size
    if height % block or width % block or channels != 3 or slots != TEMPORAL_PATCH_SIZE:
        raise ValueError(f"frames of shape {tuple(frames.shape[1:])} do not divide into 2 RGB blocks of {block} pixels")
    rows, columns = height // block, width // block
    scale = 1.0 / (255.0 * np.asarray(std, np.float64))
    shift = np.asarray(mean, np.float64) / np.asarray(std, np.float64)
    # (video, frame, row block, row in block, y, column block, column in block, x, channel), channel before y and x
    blocks = frames.reshape(videos, slots, rows, merge_size, patch_size, columns, merge_size, patch_size, 3)
    patches = blocks.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).to(torch.float32, memory_format=torch.contiguous_format)
    patches *= torch.tensor(scale, dtype=torch.float32, device=frames.device).view(3, 1, 1, 1)
    patches -= torch.tensor(shift, dtype=torch.float32, device=frames.device).view(3, 1, 1, 1)
    return patches.view(videos * rows * columns * merge_size**2, -1)


def attend_in_chunks(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attention within each image, or each window of one, in one call for the batch; transformers' own calls each.

    `query`, `key` and `value` have shape (1, heads, tokens, dim); chunk i is tokens `cu_seq_lens_q[i:i + 2]`, and the
    longest has `max_length_q`. Returns shape (1, tokens, heads, dim), in the manner of transformers' attentions.
    """
    heads, tokens, dim = query.shape[1:]
    chunks = len(cu_seq_lens_q) - 1
    if chunks * int(max_length_q) == tokens:
        q, k, v = (tensor.view(heads, chunks, -1, dim).transpose(0, 1) for tensor in (query, key, value))
        attended = scaled_dot_product_attention(q, k, v, scale=scaling)
        return attended.transpose(1, 2).reshape(1, tokens, heads, dim), None
    lengths = cu_seq_lens_q.diff().tolist()
    pieces = zip(*(torch.split(tensor, lengths, dim=2) for tensor in (query, key, value)), strict=True)
    parts = [scaled_dot_product_attention(q, k, v, scale=scaling) for q, k, v in pieces]
    return torch.cat(parts, dim=2).transpose(1, 2), None


CHUNKED_ATTENTION = "flash_in_chunks"
"""Name of `attend_in_chunks` in transformers: only one with "flash" in it is handed the batch and its borders."""

AttentionInterface.register(CHUNKED_ATTENTION, attend_in_chunks)
