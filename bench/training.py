"""Cost of training: how long steps wait for data, and how far they are from what the device can do.

    python -m bench.training feed --out bench/results/training_feed.json
    python -m bench.training steps --shape emu3-8b --shape qwen2.5-vl-3b --out bench/results/training_steps.json
    python -m bench.training steps --shape tiny-emu3 --shape tiny-qwen --device cpu

`feed` trains the same small world model for the same steps on pairs of the sample world, three ways: from the lake's
tokens as `worldlake train` does; from `triples` by Ray Data with decoding and tokenization in its stages; and by a
torch DataLoader over the Parquet files that decodes and tokenizes in a process of its own. `steps` measures a training
step of models with random weights (weights do not change the speed): the share of the fastest matrix product of this
device that its arithmetic comes to, counted without what activation checkpointing does again, and the peak memory.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import torch
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import Emu3Config, Emu3ForConditionalGeneration, Emu3TextConfig

from bench.gpu_label import ACTION, matmul_tflops, qwen_inputs, random_model, seconds
from lake.ids import triple_id
from lake.tables import Lake, now
from lake.writer import Writer
from models.huggingface import HuggingFaceDynamics
from models.objective import image_token_loss
from models.weights import LANGUAGE_LAYERS
from models.world_loading import load_image_tokenizer
from sample_world.pairs import clip_pairs
from training.builtin.tokenizer import new_vq
from training.builtin.world import new_model, new_tokenizer, write_folder
from training.data import Chosen, choose, read
from training.dynamics import DynamicsTask
from training.loop import Forward, Trainer
from training.order import Order, micro_batches
from training.prefetch import Rows, decode_images, decode_tokens, feed
from training.settings import DynamicsTraining, Source, TrainingSettings, WorldTraining
from training.tokens import make_tokens
from training.weights import choose_trained
from training.world import COLUMNS, WorldTask

Batch = dict[str, Any]

# Steps that are not counted: processes start, caches fill.
WARM_UP = 5

EMU3: dict[str, dict[str, Any]] = {
    # BAAI/Emu3-Gen-hf; 64 x 64 codes of a 512-pixel image.
    "emu3-8b": {
        "side": 64,
        "text": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
        | {"num_key_value_heads": 8, "vocab_size": 184622},
    },
    "tiny-emu3": {
        "side": 8,
        "text": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"num_key_value_heads": 2, "vocab_size": 1024},
    },
}
QWEN = {"qwen2.5-vl-3b": "3b", "qwen2.5-vl-7b": "7b", "tiny-qwen": "tiny"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    feeding = commands.add_parser("feed", help="waiting for data, against two other ways")
    feeding.add_argument("--clips", type=int, default=24, help="of the sample world")
    feeding.add_argument("--steps", type=int, default=40)
    feeding.add_argument("--batch-size", type=int, default=16)
    stepping = commands.add_parser("steps", help="model FLOP utilization and peak memory")
    stepping.add_argument("--shape", action="append", choices=[*EMU3, *QWEN], help="may be given again")
    stepping.add_argument("--method", action="append", choices=["lora", "full"], help="may be given again")
    stepping.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    stepping.add_argument("--micro-batch-size", type=int, default=1)
    stepping.add_argument("--image-size", type=int, default=448, help="pixels, of the Qwen-VL shapes")
    stepping.add_argument("--repeats", type=int, default=5)
    for command in (feeding, stepping):
        command.add_argument("--out", type=Path, help="write the figures to this JSON file too")
    options = parser.parse_args(arguments)
    if options.command == "steps" and options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here; add --device cpu --shape tiny-emu3 --shape tiny-qwen", file=sys.stderr)
        return 2
    report = {"machine": machine(), "command": " ".join(["python -m bench.training", *(arguments or sys.argv[1:])])}
    report["results"] = measure_feeds(options) if options.command == "feed" else measure_steps(options)
    print(json.dumps(report, indent=2))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def machine() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.processor() or 'cpu'}"


# ---- waiting for data


def measure_feeds(options: argparse.Namespace) -> list[dict[str, Any]]:
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model, lake = Path(folder) / "model", Lake(f"{folder}/lake")
        torch.manual_seed(0)
        write_folder(new_model(new_tokenizer()), model)
        add_sample_pairs(lake, options.clips)
        settings = WorldTraining.model_validate(
            {"model": f"hf:{model}", "steps": options.steps, "batch_size": options.batch_size, "method": "full"}
            | {"micro_batch_size": options.batch_size, "precision": "mixed", "floor": 0.3}
        )
        begun = time.perf_counter()
        chosen = choose(lake, (Source(),), {"triples": 1, "videos": 0})
        ids = chosen.table["triple_id"].combine_chunks()
        make_tokens(lake, ids, 1, model, None, "bench", threading.Event(), lambda done: None)
        tokenizing_s = time.perf_counter() - begun
        ways: dict[str, Callable[[], Iterator[Batch]]] = {
            "worldlake": lambda: from_tokens(lake, chosen, settings),
            "ray.data.read_delta, decoded and tokenized on the fly": lambda: from_delta(lake, model, settings),
            "torch DataLoader over Parquet, the same": lambda: from_loader(lake, model, settings),
        }
        results = [measure_feed(name, way(), settings, model) for name, way in ways.items()]
    results[0] |= {"triples": len(ids), "tokenizing_once_s": round(tokenizing_s, 1)}
    return results


def measure_feed(name: str, batches: Iterator[Batch], settings: WorldTraining, model: Path) -> dict[str, Any]:
    """Steps of the same model on batches of one way: pairs a second, and the share of the time spent waiting."""
    trainer = Trainer(WorldTask(settings, model), settings, options_steps(settings), torch.device("cpu"))
    waited = begun = 0.0
    for step in range(options_steps(settings)):
        if step == WARM_UP:
            waited, begun = 0.0, time.perf_counter()
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        trainer.step(step, [(step, batch)])
    taken = time.perf_counter() - begun
    pairs = (options_steps(settings) - WARM_UP) * settings.batch_size
    return {"way": name, "pairs_per_s": round(pairs / taken, 2), "data_wait": round(waited / taken, 4)}


def options_steps(settings: WorldTraining) -> int:
    assert settings.steps is not None
    return settings.steps


def from_tokens(lake: Lake, chosen: Chosen, settings: WorldTraining) -> Iterator[Batch]:
    order = Order(chosen.sources, settings.seed)
    sizes = {"batch_size": settings.batch_size, "micro_batch_size": settings.micro_batch_size}
    wanted = (
        indices
        for step in range(options_steps(settings))
        for _, indices in micro_batches(order, step, rank=0, workers=1, **sizes)
    )
    ids = chosen.table["triple_id"].combine_chunks()
    rows = read(lake, "tokens", lake.table("tokens").version(), COLUMNS, ids)
    actions = ray.put(chosen.table["action"].combine_chunks())
    return feed(Rows(rows.materialize().to_arrow_refs(), actions, decode_tokens), wanted)


class OnTheFly:
    """Triples in, what the world model is trained on out."""

    def __init__(self, model: Path) -> None:
        torch.set_num_threads(1)
        self._images = load_image_tokenizer(model, None, "cpu")

    def __call__(self, rows: pa.Table) -> Batch:
        """Decode and tokenize."""
        size = self._images.image_size
        obs, after, distances = self._images.encode_pairs(
            *(decode_images(rows[name], size) for name in ("obs", "next_obs"))
        )
        return {"obs": obs, "next_obs": after, "distances": distances, "action": np.array(rows["action"].to_pylist())}


def from_delta(lake: Lake, model: Path, settings: WorldTraining) -> Iterator[Batch]:
    while True:
        dataset = ray.data.read_delta(lake.table_uri("triples"), columns=["obs", "next_obs", "action"])
        decoded = dataset.random_shuffle().map_batches(
            OnTheFly, fn_constructor_args=(model,), batch_size=settings.batch_size, batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=1), num_cpus=0.5,
        )  # fmt: skip
        for batch in decoded.iter_batches(batch_size=settings.batch_size, prefetch_batches=8, drop_last=True):
            yield batch | {"action": batch["action"].tolist()}


class ParquetPairs(IterableDataset[Batch]):
    """Batches of a table's files, forever, in the order of the files."""

    def __init__(self, files: list[str], model: Path, batch_size: int) -> None:
        self._files, self._model, self._batch_size = files, model, batch_size

    def __iter__(self) -> Iterator[Batch]:
        make = OnTheFly(self._model)
        while True:
            for file in self._files:
                for batch in pq.ParquetFile(file).iter_batches(self._batch_size, columns=["obs", "next_obs", "action"]):
                    if len(batch) == self._batch_size:
                        made = make(pa.Table.from_batches([batch]))
                        yield made | {"action": made["action"].tolist()}


def from_loader(lake: Lake, model: Path, settings: WorldTraining) -> Iterator[Batch]:
    pairs = ParquetPairs(lake.table("triples").file_uris(), model, settings.batch_size)
    # One process, as the other two have one.
    return iter(DataLoader(pairs, batch_size=None, num_workers=1, prefetch_factor=8, multiprocessing_context="spawn"))


def add_sample_pairs(lake: Lake, clips: int) -> None:
    lake.create()
    rows = []
    for seed in range(50_000, 50_000 + clips):
        pairs = clip_pairs(seed)
        for number, ((before, after), action) in enumerate(zip(pairs.index, pairs.actions, strict=True)):
            jpegs = [cv2.imencode(".jpg", pairs.frames[i][..., ::-1])[1].tobytes() for i in (before, after)]
            rows.append(
                {
                    "triple_id": triple_id(str(seed), number, number + 1, "bench"),
                    "video_id": str(seed),
                    "action": action,
                }
                | {"obs": jpegs[0], "next_obs": jpegs[1], "dataset": "sample", "split": "train", "labeled_at": now()}
            )
    Writer(lake).append("triples", rows)


# ---- steps


class RandomWorld:
    """An Emu3 in training on random tokens: `[action] [obs] [next_obs]`, the loss on the last image."""

    outside: frozenset[torch.nn.Parameter]

    def __init__(self, shape: str, settings: WorldTraining, device: torch.device) -> None:
        self._side = EMU3[shape]["side"]
        vocabulary = new_tokenizer().get_vocab()
        vocabulary |= {f"<|visual token {code:06d}|>": len(vocabulary) + code for code in range(256)}
        text = Emu3TextConfig(
            **EMU3[shape]["text"], attention_dropout=0.0, pad_token_id=0, max_position_embeddings=9216
        )
        config = Emu3Config(vq_config=new_vq().config.to_dict(), text_config=text.to_dict(), vocabulary_map=vocabulary)
        dtype = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
        with device:
            model = Emu3ForConditionalGeneration._from_config(config, dtype=dtype)
        self.model: Any = model
        self.outside = frozenset(model.model.vqmodel.parameters())
        choose_trained(model, settings, self.outside, LANGUAGE_LAYERS)

    def batch(self, size: int) -> Batch:
        """A micro-batch of that many pairs."""
        tokens = 2 * self._side * (self._side + 1) + 24
        return {"input_ids": torch.randint(0, 200, (size, tokens), device=self.model.device)}

    def loss(self, forward: Forward, batch: Batch) -> torch.Tensor:
        """See `training.loop.Task`."""
        ids, keep = batch["input_ids"], self._side * (self._side + 1)
        logits = forward(input_ids=ids, logits_to_keep=keep + 1, use_cache=False).logits[:, :-1]
        return image_token_loss(logits, ids[:, -keep:])


class RandomDynamics(DynamicsTask):
    """A Qwen2.5-VL in training on noise."""

    def __init__(self, shape: str, settings: DynamicsTraining, device: torch.device, image_size: int) -> None:
        model = random_model(QWEN[shape], device, torch.bfloat16 if settings.precision == "bfloat16" else torch.float32)
        limits = {"image_size": image_size, "batch_size": 1, "max_new_tokens": 16}
        self._size = image_size
        super().__init__(HuggingFaceDynamics(model, qwen_inputs(model.config, image_size), **limits), settings)

    def batch(self, size: int) -> Batch:
        """A micro-batch of that many pairs."""
        frames = np.random.default_rng(0).integers(0, 256, (2, size, self._size, self._size, 3), dtype=np.uint8)
        return {"obs": frames[0], "next_obs": frames[1], "action": [ACTION] * size}


def measure_steps(options: argparse.Namespace) -> list[dict[str, Any]]:
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    ceiling = matmul_tflops(device, dtype)
    results = []
    for shape in options.shape or ["emu3-8b", "qwen2.5-vl-3b"]:
        for method in options.method or ["lora", "full"]:
            figures = {"shape": shape, "method": method, "matmul_tflops": round(ceiling, 2)}
            with told_when_it_does_not_fit(figures):
                figures |= measure_step(shape, method, device, ceiling, options)
            results.append(figures)
            print(json.dumps(figures), file=sys.stderr, flush=True)
    return results


def measure_step(
    shape: str, method: str, device: torch.device, ceiling: float, options: argparse.Namespace
) -> dict[str, Any]:
    size = options.micro_batch_size
    kind: type[TrainingSettings] = WorldTraining if shape in EMU3 else DynamicsTraining
    settings = kind.model_validate(
        {"steps": 1000, "batch_size": size, "micro_batch_size": size, "method": method}
        # bfloat16 moments too: in float32 those of 8 B parameters alone are 64 GB.
        | {"precision": "bfloat16" if device.type == "cuda" else "float32", "activation_checkpointing": True}
    )
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    task = new_task(shape, settings, device, options.image_size)
    trainer = Trainer(task, settings, 1000, device)
    batch = task.batch(size)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(task.loss(trainer.model, batch))
    trainer.optimizer.zero_grad()
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        task.loss(trainer.model, batch)
    # Checkpointing runs every layer forward once more, which is not the model's work. (That takes the head's forward
    # off too, which runs once: the share is a little on the low side.)
    tflop = (counter.get_total_flops() - forward.get_total_flops()) / 1e12
    taken = seconds(lambda: trainer.step(0, [(0, batch)]), options.repeats)
    return {
        "parameters": sum(weight.numel() for weight in task.model.parameters()),
        "trained": sum(weight.numel() for weight in trainer.trained.values()),
        "micro_batch_size": size,
        "step_s": round(taken, 4),
        "pairs_per_s": round(size / taken, 3),
        "gflop": round(1e3 * tflop, 3),
        "mfu": round(tflop / taken / ceiling, 4),
        "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1) if device.type == "cuda" else None,
    }


def new_task(shape: str, settings: TrainingSettings, device: torch.device, image_size: int) -> Any:
    if isinstance(settings, WorldTraining):
        return RandomWorld(shape, settings, device)
    assert isinstance(settings, DynamicsTraining)
    return RandomDynamics(shape, settings, device, image_size)


@contextmanager
def told_when_it_does_not_fit(figures: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        figures["does_not_fit"] = str(error).splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
