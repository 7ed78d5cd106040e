"""Train the builtin world model: a small stock Emu3 on the pairs of `models.builtin.train` and their mirror images.

    python -m models.builtin.train generate            the pairs
    python -m models.builtin.train_tokenizer           the image tokenizer
    python -m models.builtin.train_world fit           the model, on the codes of the last tokenizer checkpoint
    python -m models.builtin.train_world export        both as one folder

Each is seeded and goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import Emu3Config, Emu3ForConditionalGeneration, Emu3TextConfig, PreTrainedTokenizerFast

from models.builtin import train_tokenizer
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
from models.builtin.train_tokenizer import CODES, IMAGE_SIZE, MEAN, STD, shrunk, unchanged_patches
from models.image_tokens import ImageTokenizer
from models.objective import change_weights, image_token_loss
from models.world import Emu3World
from sample_world.pairs import UNCLEAR, Pairs, all_actions, clip_pairs

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
    config = Emu3Config(
        vq_config=train_tokenizer.new_vq().config.to_dict(), text_config=text.to_dict(), vocabulary_map=vocabulary
    )
    return Emu3ForConditionalGeneration(config)


def of_actions(pairs: Pairs) -> Pairs:
    """The pairs that have an action."""
    named = [i for i, action in enumerate(pairs.actions) if action != UNCLEAR]
    return Pairs(pairs.frames, pairs.index[named], [pairs.actions[i] for i in named])


def fit(arguments: argparse.Namespace) -> None:
    """Train for `--steps` steps, with a checkpoint and an evaluation every `--every`."""
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)
    world, held_out = assembled(arguments.tokenizer), held_out_pairs()
    text = world.model.model.text_model
    trained = nn.ModuleList([text, world.model.lm_head])
    optimizer = torch.optim.AdamW(trained.parameters(), betas=(0.9, 0.98), weight_decay=0.05)
    pairs = shrunk(of_actions(read_shards(arguments.data, arguments.shards)))
    first = resume(arguments.out, trained, optimizer)
    started, total = time.monotonic(), 0.0
    for step in range(first, arguments.steps):
        loss = _loss(world, training_batch(pairs, step, arguments.batch))
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, arguments.steps, arguments.peak)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total += loss.item()
        if (step + 1) % arguments.every == 0 or step + 1 == arguments.steps:
            figures = {
                "step": step + 1,
                "s": round(time.monotonic() - started),
                "loss": round(total / arguments.every, 4),
            }
            print(json.dumps(figures | evaluate(world, held_out)), flush=True)
            total = 0.0
            save(arguments.out, step + 1, trained, optimizer)


def assembled(tokenizer_checkpoint: Path) -> Emu3World:
    """The untrained model over the trained image tokenizer, whose weights are those that are written: bfloat16."""
    tokenizer = new_tokenizer()
    model = new_model(tokenizer)
    vq = train_tokenizer.load(tokenizer_checkpoint).bfloat16().float()
    model.model.vqmodel.load_state_dict(vq.state_dict())
    model.model.vqmodel.eval().requires_grad_(False)
    images = ImageTokenizer(model.model.vqmodel, image_size=IMAGE_SIZE, mean=MEAN, std=STD)
    images = ImageTokenizer(images.vq, image_size=IMAGE_SIZE, mean=MEAN, std=STD, hold=_hold(images))
    return Emu3World(model, tokenizer, images)


def _hold(images: ImageTokenizer) -> float:
    """The squared distance of features that all but `FLIPPING` of the unchanged places of held-out pairs stay below."""
    pairs = held_out_pairs()
    obs, after = (pairs.frames[pairs.index[:, i]] for i in (0, 1))
    distances = images.encode_pairs(obs, after)[2]
    patch = images.image_size // images.side
    still = unchanged_patches(images.pixels(obs), images.pixels(after), patch).bool().numpy()
    return float(f"{np.quantile(distances[still], 1 - FLIPPING):.2g}")


def held_out_pairs() -> Pairs:
    """Pairs of clips that are not trained on, at the tokenizer's size."""
    return shrunk(of_actions(joined([clip_pairs(FIRST_EVALUATION_SEED + i) for i in range(EVALUATION_CLIPS)])))


def _loss(world: Emu3World, pairs: Pairs) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        obs, after, distances = world.images.encode_pairs(*(pairs.frames[pairs.index[:, i]] for i in (0, 1)))
        inputs, labels = world.sequences(obs, pairs.actions, after)
        logits = world.model(**inputs, logits_to_keep=world.next_tokens + 1, use_cache=False).logits
    weights = change_weights(torch.from_numpy(distances), FLOOR)
    return image_token_loss(logits[:, :-1], labels[:, -world.next_tokens :], weights)


@torch.no_grad()
def evaluate(world: Emu3World, pairs: Pairs) -> dict[str, float]:
    """Shares of next_obs codes foretold, given those before them, where they differ from obs's and where not."""
    right, differ = [], []
    for start in range(0, len(pairs.actions), 64):
        index, actions = pairs.index[start : start + 64], pairs.actions[start : start + 64]
        obs, after, _ = world.images.encode_pairs(*(pairs.frames[index[:, i]] for i in (0, 1)))
        inputs, labels = world.sequences(obs, actions, after)
        logits = world.model(**inputs, logits_to_keep=world.next_tokens + 1, use_cache=False).logits[:, :-1]
        labels = labels[:, -world.next_tokens :]
        counted = labels[0] != -100
        right.append((logits[:, counted].argmax(-1) == labels[:, counted]).numpy())
        differ.append(obs != after)
    hits, changed = np.concatenate(right), np.concatenate(differ)
    return {"changed": round(float(hits[changed].mean()), 4), "unchanged": round(float(hits[~changed].mean()), 4)}


def export(arguments: argparse.Namespace) -> None:
    """Write the model of the last checkpoint, with its image tokenizer, as a Hugging Face folder in bfloat16."""
    world = assembled(arguments.tokenizer)
    trained = nn.ModuleList([world.model.model.text_model, world.model.lm_head])
    trained.load_state_dict(torch.load(arguments.out / "checkpoint.pt", weights_only=True)["model"])
    write_folder(world.model.bfloat16(), arguments.weights, world.images.hold)


def write_folder(model: Emu3ForConditionalGeneration, folder: Path, hold: float = 0.0) -> None:
    """Write a model of `new_model` with all that `models.world_loading` reads."""
    model.save_pretrained(folder)
    new_tokenizer().save_pretrained(folder)
    images: dict[str, object] = {"image_processor_type": "Emu3ImageProcessor", "image_mean": MEAN, "image_std": STD}
    images |= {"size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}, "hold": hold}
    (folder / "preprocessor_config.json").write_text(json.dumps(images, indent=2) + "\n")


def main() -> None:
    """Read the command line and run `fit` or `export`."""
    parser = argparse.ArgumentParser(
        prog="python -m models.builtin.train_world",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, dest="command")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--tokenizer", type=Path, default=Path("scratch/builtin/tokenizer"), help="its checkpoint")
    shared.add_argument("--out", type=Path, default=Path("scratch/builtin/world"), help="folder of the checkpoint")
    fitting = commands.add_parser("fit", parents=[shared], help="train, or go on training")
    fitting.add_argument(
        "--data", type=Path, default=Path("scratch/builtin/data"), help="shards of models.builtin.train"
    )
    fitting.add_argument("--shards", type=int, default=40)
    fitting.add_argument("--steps", type=int, default=5000)
    fitting.add_argument("--batch", type=int, default=24)
    fitting.add_argument("--peak", type=float, default=1.5e-3, help="highest learning rate")
    fitting.add_argument("--every", type=int, default=250, help="steps between checkpoints with an evaluation")
    fitting.add_argument("--seed", type=int, default=0)
    exporting = commands.add_parser("export", parents=[shared], help="write the checkpoint as a weights folder")
    exporting.add_argument("--weights", type=Path, default=Path(__file__).parent / "world_weights")
    arguments = parser.parse_args()
    {"fit": fit, "export": export}[arguments.command](arguments)


if __name__ == "__main__":
    main()
