"""A world model of some thousand weights, and a lake with triples for it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import Emu3Config, Emu3ForConditionalGeneration, Emu3TextConfig, Emu3VQVAEConfig

from lake.ids import triple_id
from lake.tables import Lake, now
from lake.writer import Writer
from training.builtin.world import new_tokenizer

SIZE = 16
"""Pixels of an image: 8 x 8 codes."""

ACTIONS = ("the red shape moves left", "it gets darker", "the white shape becomes blue", "the blue shape appears")


def save_tiny_world(folder: Path, *, hidden: int = 32) -> Path:
    """Save an Emu3 with random weights as `models.world_loading` reads it."""
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    codes = 32
    vocabulary = tokenizer.get_vocab()
    vocabulary |= {f"<|visual token {code:06d}|>": len(tokenizer) + code for code in range(codes)}
    vq = Emu3VQVAEConfig(
        codebook_size=codes,
        embed_dim=4,
        latent_channels=4,
        base_channels=32,
        channel_multiplier=[1, 1],
        num_res_blocks=1,
        attn_resolutions=[],
        hidden_size=32,
        num_attention_heads=1,
        temporal_downsample_factor=1,
    )
    text = Emu3TextConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        attention_dropout=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    config = Emu3Config(vq_config=vq.to_dict(), text_config=text.to_dict(), vocabulary_map=vocabulary)
    model = Emu3ForConditionalGeneration(config)
    # Features of an untrained encoder are all alike; spread codes among them, so that images have different tokens.
    model.model.vqmodel.quantize.embedding.weight.data.normal_(std=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    images = {"image_processor_type": "Emu3ImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps({**images, "size": {"height": SIZE, "width": SIZE}}))
    return folder


def picture(seed: int, size: int = SIZE) -> bytes:
    """A PNG of coarse noise."""
    noise = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).resize((size, size)).save(out, "png")
    return out.getvalue()


def add_triples(lake: Lake, count: int, *, first: int = 0, size: int = SIZE, dataset: str = "one") -> list[str]:
    """Append triples with their videos, two a video; returns their ids."""
    lake.create()
    rows = []
    for number in range(first, first + count):
        video = f"{dataset}-{number // 2:030d}"
        rows.append(
            {
                "triple_id": triple_id(video, number, number + 1, "human:test"),
                "labeler_id": "human:test",
                "run_id": "test",
                "policy_id": "test",
                "video_id": video,
                "dataset": dataset,
                "split": "train",
                "obs_pts": number,
                "next_pts": number + 1,
                "action": ACTIONS[number % len(ACTIONS)],
                "confidence": -number / 100,
                "labeled_at": now(),
                "obs": picture(2 * number, size),
                "next_obs": picture(2 * number + 1, size),
            }
        )
    Writer(lake).append("triples", rows)
    return [row["triple_id"] for row in rows]
