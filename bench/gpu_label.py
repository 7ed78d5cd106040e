"""Labeling on a GPU: pairs per second, and how far each phase is from the machine's own limits.

    python bench/gpu_label.py --shape 3b --shape 7b --out bench/results/gpu_label.json
    python bench/gpu_label.py --shape tiny --device cpu

Models are Qwen2.5-VL of the named shape with random weights: weights do not change the speed. Every pair generates
exactly --new-tokens tokens. Prefill (vision tower and prompt) is held against the matrix product that this device
does fastest, a decode step against the device's own copy; both are measured first.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

from models.dynamics.qwen_vl_inputs import QwenInputs
from models.dynamics.qwen_vl_patches import CHUNKED_ATTENTION
from models.huggingface import Cache, HuggingFaceDynamics
from models.settings import DEFAULT_PROMPT

SPECIAL = ["<unk>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
ACTION = "the hand moves the red cup to the left"

NORMALIZATION = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}

VISION = {
    **{"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14},
    **{"spatial_merge_size": 2, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]},
}
SHAPES: dict[str, dict[str, Any]] = {
    "3b": {
        "text": {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "vocab_size": 151936}
        | {"num_attention_heads": 16, "num_key_value_heads": 2},
        "vision": VISION | {"out_hidden_size": 2048},
        "mrope_section": [16, 24, 24],
        "tied": True,
    },
    "7b": {
        "text": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "vocab_size": 152064}
        | {"num_attention_heads": 28, "num_key_value_heads": 4},
        "vision": VISION | {"out_hidden_size": 3584},
        "mrope_section": [16, 24, 24],
        "tied": False,
    },
    "tiny": {
        "text": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512}
        | {"num_attention_heads": 4, "num_key_value_heads": 2},
        "vision": VISION
        | {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
        | {"fullatt_block_indexes": [1]},
        "mrope_section": [2, 3, 3],
        "tied": True,
    },
}


@dataclass(frozen=True)
class Result:
    """One way to run one shape. Shares are of the measured ceilings, 1.0 being all of them."""

    shape: str
    batch_size: int
    vision_attention: str
    cache: Cache
    annotate_pairs_per_s: float
    score_pairs_per_s: float
    inputs_ms: float
    prefill_ms: float
    prefill_tflop: float
    prefill_flop_share: float
    decode_step_ms: float
    decode_gb: float
    decode_bandwidth_share: float
    peak_memory_gb: float


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", choices=sorted(SHAPES), help="may be given again (default: 3b, 7b)")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--batch-size", type=int, action="append", help="may be given again (default: 16, 64)")
    parser.add_argument("--image-size", type=int, default=448, help="pixels, a multiple of 28")
    parser.add_argument("--new-tokens", type=int, default=16, help="tokens of an action, the end included")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file too")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here; add --device cpu --shape tiny, or run this where there is one", file=sys.stderr)
        return 2
    report = measure(options)
    print_table(report)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    ceilings = {"matmul_tflops": matmul_tflops(device, dtype), "copy_gb_per_s": copy_gb_per_s(device)}
    results = []
    for shape in options.shape or ["3b", "7b"]:
        model = random_model(shape, device, dtype)
        for variant in variants(options.batch_size or [16, 64]):
            model.set_attn_implementation({"vision_config": variant.vision_attention})
            results.append(asdict(measure_variant(shape, model, variant, ceilings, options)))
            print(f"{shape} {variant}: done", file=sys.stderr, flush=True)
        del model
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu",
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "image_size": options.image_size,
        "new_tokens": options.new_tokens,
        "ceilings": ceilings,
        "results": results,
    }


@dataclass(frozen=True)
class Variant:
    """A way to run a model; each differs from the one before in one thing."""

    batch_size: int
    vision_attention: str
    cache: Cache


def variants(batch_sizes: list[int]) -> Iterator[Variant]:
    """One pair at a time with transformers' own vision attention; then batches, our attention, cache, compiling."""
    yield Variant(1, "sdpa", "dynamic")
    for batch_size in batch_sizes:
        yield Variant(batch_size, "sdpa", "dynamic")
        caches: tuple[Cache, ...] = ("dynamic", "static", "compiled")
        for cache in caches:
            yield Variant(batch_size, CHUNKED_ATTENTION, cache)


def measure_variant(
    shape: str, model: Any, variant: Variant, ceilings: dict[str, float], options: argparse.Namespace
) -> Result:
    def dynamics(new_tokens: int) -> HuggingFaceDynamics:
        limits = {"batch_size": batch_size, "max_new_tokens": new_tokens, "image_size": options.image_size}
        return HuggingFaceDynamics(model, inputs, cache=variant.cache, **limits)

    batch_size = variant.batch_size
    inputs = qwen_inputs(model.config, options.image_size)
    whole, prefill_only = dynamics(options.new_tokens), dynamics(1)
    size = options.image_size
    frames = np.random.default_rng(0).integers(0, 256, (2, batch_size, size, size, 3), dtype=np.uint8)
    actions = [ACTION] * batch_size
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    inputs_s = seconds(lambda: inputs(*frames, model.device), options.repeats)
    with FlopCounterMode(display=False) as counter:
        prefill_only.annotate(*frames)
    prefill_s = seconds(lambda: prefill_only.annotate(*frames), options.repeats) - inputs_s
    annotate_s = seconds(lambda: whole.annotate(*frames), options.repeats)
    score_s = seconds(lambda: whole.score(*frames, actions), options.repeats)
    step_s = (annotate_s - inputs_s - prefill_s) / (options.new_tokens - 1)
    prompt = inputs(*frames, model.device)["input_ids"].shape[1]
    decode_gb = bytes_per_step(model, batch_size, prompt + options.new_tokens // 2) / 1e9
    tflop = counter.get_total_flops() / 1e12
    return Result(
        shape=shape,
        **asdict(variant),
        annotate_pairs_per_s=batch_size / annotate_s,
        score_pairs_per_s=batch_size / score_s,
        inputs_ms=inputs_s * 1e3,
        prefill_ms=prefill_s * 1e3,
        prefill_tflop=tflop,
        prefill_flop_share=tflop / prefill_s / ceilings["matmul_tflops"],
        decode_step_ms=step_s * 1e3,
        decode_gb=decode_gb,
        decode_bandwidth_share=decode_gb / step_s / ceilings["copy_gb_per_s"],
        peak_memory_gb=torch.cuda.max_memory_allocated() / 1e9 if model.device.type == "cuda" else 0.0,
    )


def random_model(shape: str, device: torch.device, dtype: torch.dtype) -> Any:
    parts = SHAPES[shape]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": parts["mrope_section"]}
    config = AutoConfig.for_model(
        "qwen2_5_vl",
        text_config=parts["text"] | {"rope_parameters": rope, "eos_token_id": SPECIAL.index("<|im_end|>")},
        vision_config=parts["vision"],
        tie_word_embeddings=parts["tied"],
        **{f"{kind}_token_id": SPECIAL.index(f"<|{kind}_pad|>") for kind in ("image", "video")},
        **{f"vision_{edge}_token_id": SPECIAL.index(f"<|vision_{edge}|>") for edge in ("start", "end")},
    )
    torch.manual_seed(0)
    with device:
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype).eval().requires_grad_(False)
    # A logit of zero is never the largest: no answer ends before its last token, so that all take equally long.
    model.lm_head.weight[SPECIAL.index("<|im_end|>")] = 0
    model.generation_config.eos_token_id = SPECIAL.index("<|im_end|>")
    return model


def qwen_inputs(config: Any, image_size: int) -> QwenInputs:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps(NORMALIZATION))
        tokenizer = word_tokenizer(config.get_text_config().vocab_size)
        return QwenInputs(Path(folder), config, tokenizer, image_size, "video", DEFAULT_PROMPT)


def word_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A word for every token that a model can say, so that what it says can be asked of it again."""
    words = [*SPECIAL, *sorted({*DEFAULT_PROMPT.split(), *ACTION.split()})]
    words += [f"word{i}" for i in range(len(words), size)]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="<|im_end|>", extra_special_tokens=SPECIAL[2:]
    )


def write_qwen(shape: str, folder: Path) -> None:
    """Save a model of that shape, as `hf:` takes it."""
    # Not on a GPU, whose memory this process would keep from those that are measured.
    model = random_model(shape, torch.device("cpu"), torch.bfloat16 if torch.cuda.is_available() else torch.float32)
    model.save_pretrained(folder)
    word_tokenizer(model.config.get_text_config().vocab_size).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(NORMALIZATION))


def bytes_per_step(model: Any, batch_size: int, tokens: int) -> int:
    """Bytes that one decode step must read: every weight of the language model once, and the keys and values."""
    text = model.config.get_text_config()
    layers = sum(p.numel() for name, p in model.model.language_model.named_parameters() if "embed_tokens" not in name)
    head_dim = text.hidden_size // text.num_attention_heads
    keys_and_values = 2 * batch_size * tokens * text.num_hidden_layers * text.num_key_value_heads * head_dim
    return int((layers + model.lm_head.weight.numel() + keys_and_values) * model.dtype.itemsize)


def matmul_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """The fastest of several square matrix products, in TFLOP/s."""
    best = 0.0
    for size in (4096, 8192, 16384) if device.type == "cuda" else (512, 1024):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        best = max(best, 2 * size**3 / fastest(lambda a=a, b=b: a @ b) / 1e12)
    return best


def copy_gb_per_s(device: torch.device) -> float:
    """The device's copy from its memory to its memory, in GB/s, what is read and what is written added up."""
    count = 2**30 if device.type == "cuda" else 2**26
    source = torch.ones(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * count / fastest(lambda: target.copy_(source)) / 1e9


def seconds(call: Callable[[], object], repeats: int) -> float:
    """The median of `repeats` runs, after two that compile and warm up."""
    return statistics.median(timings(call, repeats))


def fastest(call: Callable[[], object]) -> float:
    return min(timings(call, 10))


def timings(call: Callable[[], object], repeats: int) -> list[float]:
    taken = []
    for _ in range(2 + repeats):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return taken[2:]


def print_table(report: dict[str, Any]) -> None:
    ceilings = report["ceilings"]
    print(f"{report['device']}, {report['dtype']}, torch {report['torch']}, transformers {report['transformers']}")
    print(f"ceilings: {ceilings['matmul_tflops']:.4g} TFLOP/s matmul, {ceilings['copy_gb_per_s']:.4g} GB/s copy")
    print(f"pairs of {report['image_size']} px as two-frame videos, {report['new_tokens']} tokens generated each\n")
    titles = ["annotate/s", "score/s", "inputs ms", "prefill ms", "of matmul", "step ms", "of copy", "peak GB"]
    print(f"{'shape':6}{'batch':>6}  {'vision':18}{'cache':10}" + "".join(f"{title:>11}" for title in titles))
    for row in report["results"]:
        print(
            f"{row['shape']:6}{row['batch_size']:>6}  {row['vision_attention']:18}{row['cache']:10}"
            f"{row['annotate_pairs_per_s']:>11.1f}{row['score_pairs_per_s']:>11.1f}"
            f"{row['inputs_ms']:>11.2f}{row['prefill_ms']:>11.2f}{row['prefill_flop_share']:>11.1%}"
            f"{row['decode_step_ms']:>11.2f}{row['decode_bandwidth_share']:>11.1%}{row['peak_memory_gb']:>11.1f}"
        )


if __name__ == "__main__":
    sys.exit(main())
