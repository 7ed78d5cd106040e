"""Randomly initialized models of a few thousand weights, saved as their users would save them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    ChameleonProcessor,
    Idefics3Processor,
    PreTrainedTokenizerFast,
)
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from models.settings import DEFAULT_PROMPT

WORDS = re.findall(
    r"\w+",
    "the a red blue green circle square hand cup door ball moves turns grows shrinks opens closes left right up down "
    "slowly quickly away back into out of from it nothing happens",
)
SPECIAL = [
    *("<unk>", "<pad>", "<s>", "<eos>", "<stop>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>", "<image>", "<fake_token_around_image>", "<global-img>", "<sep>"),
    *("<end_of_utterance>", "<racm3:break>", "<eoss>"),
]
CHAT = (
    "{% for message in messages %}<|im_start|> {{ message.role }} {% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% else %}"
    "<|vision_start|><|{{ part.type }}_pad|><|vision_end|>{% endif %}{% endfor %} <eos> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
FAMILIES = (*QWEN, "idefics3", "chameleon")

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
_MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
_QWEN_VISION: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2},
    "qwen2_5_vl": {
        **{"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32},
        **{"window_size": 32, "fullatt_block_indexes": [1]},
    },
    "qwen3_vl": {
        **{"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32},
        **{"num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
    },
}


def save_tiny(family: str, folder: Path, *, ends: tuple[str, ...] = ("<eos>", "<stop>"), **text: int) -> Path:
    """Save a model of the family, its tokenizer and its processor to the folder; `text` changes its text config."""
    extra = [f"IMGIMG{letter}Z" for letter in "ABCDEFGH"] if family == "chameleon" else []
    tokenizer = new_tokenizer(extra, chat=family != "chameleon")
    vocabulary = tokenizer.get_vocab()
    config = _config(family, vocabulary, text)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    for name, parameter in model.named_parameters():
        # transformers' initial weights are so small that every answer would be nearly the same.
        if parameter.ndim > 1 and "vqmodel" not in name:
            torch.nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
        if "embed_tokens" in name:
            torch.nn.init.normal_(parameter, std=1.0)
    model.generation_config.eos_token_id = [vocabulary[end] for end in ends]
    model.save_pretrained(folder)
    _save_processor(family, tokenizer, config, folder)
    return folder


def new_tokenizer(extra: Iterable[str] = (), *, chat: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer of the words above, and of special tokens: `extra` beside those that every model here has."""
    return _tokenizer({token: index for index, token in enumerate([*SPECIAL, *_words(), *extra])}, chat=chat)


def _words() -> list[str]:
    return sorted({*WORDS, *re.findall(r"\w+|[,.]", DEFAULT_PROMPT), "user", "assistant"})


def _tokenizer(vocabulary: dict[str, int], *, chat: bool) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("[,.]$"), "isolated")]
    )
    named = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "<eos>", "sep_token": "<sep>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, **named, extra_special_tokens=[t for t in SPECIAL if t not in named.values()]
    )
    if chat:
        tokenizer.chat_template = CHAT
    return tokenizer


def _config(family: str, vocabulary: dict[str, int], changes: dict[str, int]) -> Any:
    text = (
        TEXT
        | changes
        | {
            "vocab_size": len(vocabulary) + 3,  # as real models have it: rows that no token names
            "bos_token_id": vocabulary["<s>"],
            "eos_token_id": vocabulary["<eos>"],
            "pad_token_id": vocabulary["<pad>"],
        }
    )
    if family in QWEN:
        return AutoConfig.for_model(
            family,
            text_config=text | {"rope_parameters": _MROPE | ({"mrope_interleaved": True} if "3" in family else {})},
            vision_config=_QWEN_VISION[family] | {"patch_size": 8, "spatial_merge_size": 2},
            image_token_id=vocabulary["<|image_pad|>"],
            video_token_id=vocabulary["<|video_pad|>"],
            vision_start_token_id=vocabulary["<|vision_start|>"],
            vision_end_token_id=vocabulary["<|vision_end|>"],
        )
    if family == "idefics3":
        vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        return AutoConfig.for_model(
            family,
            text_config=text | {"model_type": "llama"},
            vision_config=vision | {"image_size": 32, "patch_size": 8},
            image_token_id=vocabulary["<image>"],
            scale_factor=2,
        )
    vq = {"base_channels": 32, "channel_multiplier": [1, 2], "num_res_blocks": 1, "resolution": 16}
    return AutoConfig.for_model(
        family,
        **text,
        vq_config=vq | {"embed_dim": 8, "latent_channels": 8, "num_embeddings": 8},
        vocabulary_map=vocabulary,
    )


def _save_processor(family: str, tokenizer: PreTrainedTokenizerFast, config: Any, folder: Path) -> None:
    if family == "idefics3":
        images: Any = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
        # The processor reads <image>; the chat template writes what the tokenizer calls an image.
        tokenizer.chat_template = CHAT.replace("<|vision_start|><|{{ part.type }}_pad|><|vision_end|>", "<image>")
        Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=tokenizer.chat_template).save_pretrained(
            folder
        )
    elif family == "chameleon":
        images = ChameleonImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
        ChameleonProcessor(images, tokenizer, image_seq_length=64).save_pretrained(folder)
    else:
        tokenizer.save_pretrained(folder)
        vision = config.vision_config
        preprocessor = {
            "image_processor_type": "Qwen2VLImageProcessor",
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "patch_size": vision.patch_size,
            "merge_size": vision.spatial_merge_size,
            "temporal_patch_size": vision.temporal_patch_size,
            "size": {"shortest_edge": 64, "longest_edge": 32 * 32},
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
