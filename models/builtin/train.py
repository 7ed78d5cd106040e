"""Train the builtin dynamics model: a tiny stock Qwen2-VL on pairs from the sample world.

Two commands, which may run at the same time: `generate` writes the training pairs in shards, `fit` trains on them and
writes the weights in plain Hugging Face format. Both are seeded and go on where they stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from models.qwen import CHUNKED_ATTENTION, pair_patches
from sample_world.clips import FIRST_TRAINING_SEED
from sample_world.pairs import IMAGE_SIZE, Pairs, all_actions, clip_pairs, kind_of, transformed, unlike_pairs

PATCH, MEAN, STD = 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
MERGE = 2
PAD, END, VISION_START, VISION_END, IMAGE, VIDEO, UNKNOWN = range(7)
SPECIAL = ["<|pad|>", "<|end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|unknown|>"]
CHAT_TEMPLATE = "<|vision_start|><|video_pad|><|vision_end|>"
CLIPS_PER_SHARD = 24
FIRST_EVALUATION_SEED = 500_000_000
EVALUATION_CLIPS = 24


def new_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; the chat template renders the video alone, as the model knows a single question."""
    words = sorted({word for action in all_actions() for word in action.split()})
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, SPECIAL[UNKNOWN]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    roles = {"pad_token": SPECIAL[PAD], "eos_token": SPECIAL[END], "unk_token": SPECIAL[UNKNOWN]}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **roles,
        additional_special_tokens=SPECIAL[VISION_START:UNKNOWN],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def new_model(vocabulary: int) -> Qwen2VLForConditionalGeneration:
    """The untrained model, 2.5 M parameters.

    The bases of the rotary embeddings are small because the grids are: with the usual 10,000 the slow frequencies,
    which the text model gives to rows and columns, hardly turn over 4 places, and directions are not learned.
    """
    text = {
        "vocab_size": vocabulary,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 4.0, "mrope_section": [4, 6, 6]},
        "initializer_range": 0.05,
        "bos_token_id": None,
        "eos_token_id": END,
        "pad_token_id": PAD,
    }
    vision = {
        "depth": 4,
        "embed_dim": 128,
        "hidden_size": text["hidden_size"],
        "num_heads": 4,
        "mlp_ratio": 4,
        "hidden_act": "silu",
        "initializer_range": 0.05,
        "rope_parameters": {"rope_type": "axial", "rope_theta": 50.0},
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
    }
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        tie_word_embeddings=True,
    )
    return Qwen2VLForConditionalGeneration(config)


@dataclass(frozen=True)
class Batch:
    """Model inputs for pairs and their actions; the last `ids.shape[1] - prompt` ids are the answer."""

    pixels: torch.Tensor
    grid: torch.Tensor
    ids: torch.Tensor
    positions: torch.Tensor


class Batcher:
    """Lays pairs and actions out for the model, with the position ids that the stock model would compute."""

    def __init__(self, model: Qwen2VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast):
        self._answers = {action: [*tokenizer(action)["input_ids"], END] for action in all_actions()}
        self.answer_length = max(map(len, self._answers.values()))
        cells = IMAGE_SIZE // PATCH
        self._prompt = [VISION_START, *[VIDEO] * (cells // MERGE) ** 2, VISION_END]
        row = torch.tensor([[*self._prompt, *[END] * self.answer_length]])
        self._positions, _ = model.model.get_rope_index(
            row, mm_token_type_ids=(row == VIDEO).int() * 2, video_grid_thw=torch.tensor([[1, cells, cells]])
        )

    def __call__(self, pairs: Pairs) -> Batch:
        """Lay out pairs and what happened in them."""
        obs, next_obs = (pairs.frames[pairs.index[:, i]] for i in (0, 1))
        pixels, grid = pair_patches(obs, next_obs, patch_size=PATCH, merge_size=MERGE, mean=MEAN, std=STD)
        answers = [self._answers[action] for action in pairs.actions]
        rows = [[*self._prompt, *a, *[PAD] * (self.answer_length - len(a))] for a in answers]
        positions = self._positions.expand(-1, len(rows), -1)
        return Batch(torch.from_numpy(pixels), torch.from_numpy(grid), torch.tensor(rows), positions)

    def logits_and_answers(
        self, model: Qwen2VLForConditionalGeneration, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (batch, answer_length, vocabulary) for the answer ids (batch, answer_length), padding as -100."""
        output = model(
            input_ids=batch.ids,
            pixel_values_videos=batch.pixels,
            video_grid_thw=batch.grid,
            position_ids=batch.positions,
            logits_to_keep=self.answer_length + 1,
            use_cache=False,
        )
        answers = batch.ids[:, -self.answer_length :]
        return output.logits[:, :-1], answers.masked_fill(answers == PAD, -100)


def generate(folder: Path, shards: int) -> None:
    """Write the shards that are missing: pairs of `CLIPS_PER_SHARD` clips and some unlike ones each."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        path = folder / f"{shard:05d}.npz"
        if not path.exists():
            first = FIRST_TRAINING_SEED + shard * CLIPS_PER_SHARD
            parts = [clip_pairs(first + i) for i in range(CLIPS_PER_SHARD)] + [unlike_pairs(first)]
            pairs = joined(parts)
            half = path.with_suffix(".part")
            with half.open("wb") as file:
                actions = np.array(pairs.actions)
                np.savez(file, frames=pairs.frames, index=pairs.index, actions=actions)
            half.rename(path)


def joined(parts: list[Pairs]) -> Pairs:
    """Several sets of pairs as one."""
    starts = np.cumsum([0, *(len(part.frames) for part in parts[:-1])])
    index = np.concatenate([part.index + start for part, start in zip(parts, starts, strict=True)])
    return Pairs(np.concatenate([p.frames for p in parts]), index, [a for p in parts for a in p.actions])


def read_shards(folder: Path, shards: int) -> Pairs:
    """Read the first `shards` shards. Raises FileNotFoundError where one is missing."""
    parts = []
    for shard in range(shards):
        with np.load(folder / f"{shard:05d}.npz") as arrays:
            parts.append(Pairs(arrays["frames"], arrays["index"], arrays["actions"].tolist()))
    return joined(parts)


def training_batch(pairs: Pairs, step: int, size: int) -> Pairs:
    """The pairs of a step, each turned, mirrored and swapped at random; the same for the same step."""
    rng = np.random.default_rng([step, 4])
    frames, actions = [], []
    for row in rng.integers(len(pairs.actions), size=size):
        turns, mirror, swap = int(rng.integers(4)), bool(rng.integers(2)), bool(rng.integers(2))
        for number in pairs.index[row][::-1] if swap else pairs.index[row]:
            turned = np.rot90(pairs.frames[number], turns)
            frames.append(turned[:, ::-1] if mirror else turned)
        actions.append(transformed(pairs.actions[row], turns, mirror, swap))
    return Pairs(np.stack(frames), np.arange(2 * size).reshape(size, 2), actions)


def evaluate(model: Qwen2VLForConditionalGeneration, batcher: Batcher, pairs: Pairs) -> dict[str, float]:
    """Exact match (greedy, every token and the end), over all pairs and by the word that tells the kind of action."""
    right: dict[str, list[bool]] = {}
    model.eval()
    for start in range(0, len(pairs.actions), 128):
        index, actions = pairs.index[start : start + 128], pairs.actions[start : start + 128]
        with torch.inference_mode():
            some = Pairs(pairs.frames, index, actions)
            logits, answers = batcher.logits_and_answers(model, batcher(some))
        exact = ((logits.argmax(-1) == answers) | (answers == -100)).all(-1).tolist()
        for action, hit in zip(actions, exact, strict=True):
            right.setdefault(kind_of(action), []).append(hit)
    model.train()
    return {"all": float(np.mean([hit for hits in right.values() for hit in hits]))} | {
        k: float(np.mean(v)) for k, v in sorted(right.items())
    }


def learning_rate(step: int, steps: int, peak: float, warmup: int = 300) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + float(np.cos(np.pi * share))))


def fit(arguments: argparse.Namespace) -> None:
    """Train for `--steps` steps, with a checkpoint and an evaluation every `--every`, and write the weights."""
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    tokenizer = new_tokenizer()
    model = new_model(len(tokenizer))
    batcher = Batcher(model, tokenizer)
    model.set_attn_implementation({"vision_config": CHUNKED_ATTENTION})
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.02)
    pairs = read_shards(arguments.data, arguments.shards)
    held_out = joined([clip_pairs(FIRST_EVALUATION_SEED + i) for i in range(EVALUATION_CLIPS)])
    first = resume(arguments.out, model, optimizer)
    started, total = time.monotonic(), 0.0
    for step in range(first, arguments.steps):
        drawn = training_batch(pairs, step, arguments.batch)
        logits, answers = batcher.logits_and_answers(model, batcher(drawn))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), answers.flatten())
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, arguments.steps, arguments.peak)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total += loss.item()
        if (step + 1) % arguments.every == 0 or step + 1 == arguments.steps:
            report = {
                "step": step + 1,
                "s": round(time.monotonic() - started),
                "loss": round(total / arguments.every, 4),
            }
            scores = {k: round(v, 3) for k, v in evaluate(model, batcher, held_out).items()}
            print(json.dumps(report | scores), flush=True)
            total = 0.0
            save(arguments.out, step + 1, model, optimizer)


def resume(out: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load the last checkpoint, where there is one; returns the step to go on with."""
    path = out / "checkpoint.pt"
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def save(out: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write the checkpoint to go on with."""
    out.mkdir(parents=True, exist_ok=True)
    state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, out / "checkpoint.part")
    (out / "checkpoint.part").rename(out / "checkpoint.pt")


def export(out: Path, weights: Path) -> None:
    """Write the model of the last checkpoint as a Hugging Face folder, in bfloat16: 5 MB."""
    model = new_model(len(new_tokenizer()))
    model.load_state_dict(torch.load(out / "checkpoint.pt", weights_only=True)["model"])
    write_folder(model.bfloat16(), weights)


def write_folder(model: Qwen2VLForConditionalGeneration, weights: Path) -> None:
    """Write a model of `new_model` with all that `models.loading` reads."""
    model.generation_config = GenerationConfig(eos_token_id=END, pad_token_id=PAD, max_new_tokens=16, do_sample=False)
    model.save_pretrained(weights)
    new_tokenizer().save_pretrained(weights, save_jinja_files=False)
    edge = {"shortest_edge": IMAGE_SIZE**2, "longest_edge": IMAGE_SIZE**2}
    images: dict[str, object] = {"image_processor_type": "Qwen2VLImageProcessor", "image_mean": MEAN}
    images |= {"image_std": STD, "size": edge, "patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
    (weights / "preprocessor_config.json").write_text(json.dumps(images, indent=2) + "\n")


def main() -> None:
    """Read the command line and run `generate` or `fit`."""
    parser = argparse.ArgumentParser(prog="python -m models.builtin.train", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--data", type=Path, default=Path("scratch/builtin/data"), help="folder of the shards")
    shared.add_argument("--shards", type=int, default=40, help="shards of 24 clips in all")
    checkpoint = argparse.ArgumentParser(add_help=False)
    checkpoint.add_argument("--out", type=Path, default=Path("scratch/builtin/run"), help="folder of the checkpoint")
    commands.add_parser("generate", parents=[shared], help="write the shards that are missing")
    fitting = commands.add_parser("fit", parents=[shared, checkpoint], help="train, or go on training")
    fitting.add_argument("--steps", type=int, default=9000)
    fitting.add_argument("--batch", type=int, default=32)
    fitting.add_argument("--peak", type=float, default=1e-3, help="highest learning rate")
    fitting.add_argument("--every", type=int, default=300, help="steps between checkpoints with an evaluation")
    fitting.add_argument("--seed", type=int, default=0)
    fitting.add_argument("--threads", type=int, default=1)
    exporting = commands.add_parser("export", parents=[checkpoint], help="write the checkpoint as a weights folder")
    exporting.add_argument("--weights", type=Path, default=Path(__file__).parent / "weights")
    arguments = parser.parse_args()
    if arguments.command == "generate":
        generate(arguments.data, arguments.shards)
    elif arguments.command == "fit":
        fit(arguments)
    else:
        export(arguments.out, arguments.weights)


if __name__ == "__main__":
    main()
