from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.costs import Transformer, cores, flop_of_step, labeled_per_s, labeling_at, stages
from bench.training import RandomWorld
from training.settings import WorldTraining


@pytest.mark.parametrize("method", ["lora", "full"])
def test_operations_are_those_that_torch_counts(method: str) -> None:
    settings: Any = {"steps": 1, "batch_size": 1, "micro_batch_size": 1, "method": method, "precision": "float32"}
    if method == "lora":
        settings["lora_rank"] = 1
    task = RandomWorld("tiny-emu3", WorldTraining.model_validate(settings), torch.device("cpu"))
    batch = task.batch(1)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(task.loss(task.model, batch))
    shape = Transformer(hidden=128, intermediate=256, layers=2, key_value=64, vocabulary=1024)
    tokens = batch["input_ids"].shape[1]
    # On a CPU torch does not count attention.
    counted = flop_of_step(shape.forward(tokens, 73) - shape.attention(tokens), method)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_costs_grow_with_what_is_done() -> None:
    once, twice = stages(10_000, 10), stages(20_000, 10)
    assert [b / a for a, b in zip(once.values(), twice.values(), strict=True)] == pytest.approx([2] * 3)


def test_a_column_of_scales_is_what_the_single_figures_are() -> None:
    found = labeling_at(1000, 2.0, 0.1, 20.0)
    assert found["GPU-hours"] == pytest.approx(found["pairs"] / labeled_per_s()[0] / 3600)
    assert found["price of the GPUs"] == pytest.approx(2 * found["GPU-hours"])
    assert found["price of the cores"] == pytest.approx(0.1 * found["core-hours"])
    written = found["TB written, if every pair is accepted"]
    assert found["price of the lake, a month"] == pytest.approx(20 * written)
    assert found["core-hours"] in cores(1000).values()
    assert found["TB read"] == pytest.approx(1.8)
    # Two JPEGs of 448 pixels a pair.
    assert 10e3 < written * 1e12 / found["pairs"] / 2 < 400e3
