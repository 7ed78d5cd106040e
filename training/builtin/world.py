"""The builtin world model: a small stock Emu3, trained on pairs of the sample world and their mirror images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Emu3Config, Emu3ForConditionalGeneration, Emu3TextConfig, PreTrainedTokenizerFast

from models.protocols import ImageTokenizer
from models.world.emu3_images import Emu3Images
from models.world.tokens import TokenWorld
from models.world_loading import load_image_tokenizer
from sample_world.pairs import Pairs, all_actions
from training.builtin.data import held_out, read_shards, shrunk, training_batch, with_action
from training.builtin.tokenizer import CODES, IMAGE_SIZE, MEAN, STD, new_vq, trained_vq, unchanged_patches
from training.builtin.train_loop import Recipe, train, trained_weights
from training.settings import WorldTraining
from training.world import WorldTask

SPECIAL = {
    "pad_token": "<|pad|>",
    "bos_token": "<|begin|>",
    "eos_token": "<|end|>",
    "unk_token": "<|unknown|>",
    "image_token": "<image>",
    "boi_token": "<|image start|>",
    "eoi_token": "<|image end|>",
    "image_wrapper_token": "<|image token|>",
    "eof_token": "<|extra_201|>",
    "eol_token": "<|extra_200|>",
}
"""By role: four of any text, and those of images with the texts that transformers' Emu3 looks for."""

FLOOR = 0.3
"""Least weight of a token: unchanged places are to be copied, so they must be learned too."""

FLIPPING = 0.02
"""Share of unchanged places that may have another code in next_obs all the same; it fixes the tokenizer's `hold`."""


def new_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word and an image size; the codes of images come after them, and are never written as text."""
    words = sorted({word for action in all_actions() for word in action.split()})
    side = IMAGE_SIZE // 4
    vocabulary = {token: i for i, token in enumerate([*SPECIAL.values(), *words, f"{side}*{side}"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    roles = {
        role: token for role, token in SPECIAL.items() if role in ("pad_token", "bos_token", "eos_token", "unk_token")
    }
    images = {role: token for role, token in SPECIAL.items() if role not in roles}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **roles,
        extra_special_tokens=images,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> Emu3ForConditionalGeneration:
    """The untrained model: 2.6 M parameters, and the tokenizer's 1.0 M.

    The base of the rotary embedding is small because sequences are short: 160 tokens, where Emu3's own has 10^6.
    """
    vocabulary = tokenizer.get_vocab()
    first = len(vocabulary)
    vocabulary |= {f"<|visual token {code:06d}|>": first + code for code in range(CODES)}
    text = Emu3TextConfig(
        vocab_size=len(vocabulary),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        attention_dropout=0.0,
        initializer_range=0.04,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    config = Emu3Config(vq_config=new_vq().config.to_dict(), text_config=text.to_dict(), vocabulary_map=vocabulary)
    return Emu3ForConditionalGeneration(config)


def fit(recipe: Recipe) -> None:
    """Train for `recipe.steps` steps, on the codes of the trained tokenizer.

    Raises FileNotFoundError where the tokenizer or a shard is missing.
    """
    out = recipe.folder / "world"
    torch.manual_seed(recipe.seed)
    _write_untrained(recipe.folder, out / "untrained")
    images = load_image_tokenizer(out / "untrained", None, "cpu")
    settings = WorldTraining(precision="mixed", floor=FLOOR, warmup_steps=300, weight_decay=0.05, **recipe.settings())
    task = WorldTask(settings, out / "untrained")
    pairs = shrunk(with_action(read_shards(recipe.folder / "data", recipe.shards)), IMAGE_SIZE)
    unseen = held_out_pairs()

    def batch(step: int) -> dict[str, Any]:
        drawn = training_batch(pairs, step, recipe.batch)
        obs, after, distances = images.encode_pairs(*(drawn.frames[drawn.index[:, i]] for i in (0, 1)))
        return {"obs": obs, "next_obs": after, "distances": distances, "action": drawn.actions}

    train(task, settings, batch, lambda: evaluate(task.world, images, unseen), out, recipe.every)


def _write_untrained(folder: Path, untrained: Path) -> None:
    """Write the untrained model over the trained image tokenizer, whose weights are those that ship: bfloat16."""
    model = new_model(new_tokenizer())
    vq = trained_vq(folder).bfloat16().float()
    model.model.vqmodel.load_state_dict(vq.state_dict())
    write_folder(model, untrained, _hold(Emu3Images(vq, image_size=IMAGE_SIZE, mean=MEAN, std=STD)))


def _hold(images: Emu3Images) -> float:
    """The squared distance of features that all but `FLIPPING` of the unchanged places of held-out pairs stay below."""
    pairs = held_out_pairs()
    obs, after = (pairs.frames[pairs.index[:, i]] for i in (0, 1))
    distances = images.encode_pairs(obs, after)[2]
    still = unchanged_patches(images.pixels(obs), images.pixels(after), IMAGE_SIZE // images.side).bool().numpy()
    return float(f"{np.quantile(distances[still], 1 - FLIPPING):.2g}")


def held_out_pairs() -> Pairs:
    """Pairs of clips that are not trained on, at the size of the tokenizer."""
    return shrunk(with_action(held_out()), IMAGE_SIZE)


@torch.no_grad()
def evaluate(world: TokenWorld, images: ImageTokenizer, pairs: Pairs) -> dict[str, float]:
    """Shares of next_obs codes predicted, given those before them, where they differ from obs's and where not."""
    right, differ = [], []
    for start in range(0, len(pairs.actions), 64):
        index, actions = pairs.index[start : start + 64], pairs.actions[start : start + 64]
        obs, after, _ = images.encode_pairs(*(pairs.frames[index[:, i]] for i in (0, 1)))
        inputs, labels = world.sequences(obs, actions, after)
        logits = world.model(**inputs, logits_to_keep=world.next_tokens + 1, use_cache=False).logits[:, :-1]
        labels = labels[:, -world.next_tokens :]
        counted = labels[0] != -100
        right.append((logits[:, counted].argmax(-1) == labels[:, counted]).numpy())
        differ.append(obs != after)
    hits, changed = np.concatenate(right), np.concatenate(differ)
    return {"changed": round(float(hits[changed].mean()), 4), "unchanged": round(float(hits[~changed].mean()), 4)}


def export(folder: Path, weights: Path) -> None:
    """Write the model of the last checkpoint, with its image tokenizer, as a Hugging Face folder in bfloat16."""
    model = new_model(new_tokenizer())
    model.load_state_dict(trained_weights(folder / "world"))
    hold = json.loads((folder / "world" / "untrained" / "preprocessor_config.json").read_text())["hold"]
    write_folder(model.bfloat16(), weights, hold)


def write_folder(model: Emu3ForConditionalGeneration, folder: Path, hold: float = 0.0) -> None:
    """Write a model of `new_model` with all that `models.world_loading` reads."""
    model.save_pretrained(folder)
    new_tokenizer().save_pretrained(folder)
    images: dict[str, object] = {"image_processor_type": "Emu3ImageProcessor", "image_mean": MEAN, "image_std": STD}
    images |= {"size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}, "hold": hold}
    (folder / "preprocessor_config.json").write_text(json.dumps(images, indent=2) + "\n")
