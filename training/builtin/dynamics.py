"""The builtin dynamics model: a tiny stock Qwen2-VL, trained on pairs of the sample world."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from models.huggingface import HuggingFaceDynamics
from models.loading import load_dynamics
from models.protocols import DynamicsModel
from models.settings import ModelSettings
from sample_world.pairs import IMAGE_SIZE, Pairs, all_actions, kind_of
from training.builtin.data import held_out, read_shards, training_batch
from training.builtin.train_loop import Recipe, train, trained_weights
from training.dynamics import DynamicsTask
from training.settings import DynamicsTraining

PATCH, MEAN, STD = 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
MERGE = 2
PAD, END, VISION_START, VISION_END, IMAGE, VIDEO, UNKNOWN = range(7)
SPECIAL = ["<|pad|>", "<|end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|unknown|>"]
CHAT_TEMPLATE = "<|vision_start|><|video_pad|><|vision_end|>"


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


def fit(recipe: Recipe) -> None:
    """Train for `recipe.steps` steps on shards that `generate` wrote. Raises FileNotFoundError where one is missing."""
    out = recipe.folder / "dynamics"
    pairs, unseen = read_shards(recipe.folder / "data", recipe.shards), held_out()
    torch.manual_seed(recipe.seed)
    write_folder(new_model(len(new_tokenizer())), out / "untrained")
    base = f"hf:{out / 'untrained'}"
    settings = DynamicsTraining(
        model=base, precision="float32", warmup_steps=300, weight_decay=0.02, **recipe.settings()
    )
    model = load_dynamics(ModelSettings(name=base), "cpu")
    assert isinstance(model, HuggingFaceDynamics)

    def batch(step: int) -> dict[str, object]:
        drawn = training_batch(pairs, step, recipe.batch)
        obs, next_obs = (drawn.frames[drawn.index[:, i]] for i in (0, 1))
        return {"obs": obs, "next_obs": next_obs, "action": drawn.actions}

    train(DynamicsTask(model, settings), settings, batch, lambda: evaluate(model, unseen), out, recipe.every)


def evaluate(model: DynamicsModel, pairs: Pairs) -> dict[str, float]:
    """Share of pairs whose action is named exactly: over `all`, and by kind of action."""
    right: dict[str, list[bool]] = {}
    labels = model.annotate(*(pairs.frames[pairs.index[:, i]] for i in (0, 1)))
    for action, label in zip(pairs.actions, labels, strict=True):
        right.setdefault(kind_of(action), []).append(label.action == action)
    shares = {"all": np.mean([hit for hits in right.values() for hit in hits])}
    shares |= {kind: np.mean(hits) for kind, hits in sorted(right.items())}
    return {kind: round(float(share), 3) for kind, share in shares.items()}


def export(folder: Path, weights: Path) -> None:
    """Write the model of the last checkpoint as a Hugging Face folder, in bfloat16: 5 MB."""
    model = new_model(len(new_tokenizer()))
    model.load_state_dict(trained_weights(folder / "dynamics"))
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
