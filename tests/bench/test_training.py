"""The benchmark of steps runs, small, on a CPU; what it measures there means nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.training import main


def test_it_measures_both_methods_of_both_kinds(tmp_path: Path) -> None:
    out = tmp_path / "results" / "steps.json"
    small = ["--shape", "tiny-emu3", "--shape", "tiny-qwen", "--device", "cpu", "--image-size", "56", "--repeats", "1"]
    assert main(["steps", *small, "--out", str(out)]) == 0
    results = json.loads(out.read_text())["results"]
    assert [(row["shape"], row["method"]) for row in results] == [
        (shape, method) for shape in ("tiny-emu3", "tiny-qwen") for method in ("lora", "full")
    ]
    for lora, full in (results[:2], results[2:]):
        assert lora["trained"] < full["trained"]
        assert min(lora["gflop"], full["gflop"], lora["mfu"], full["mfu"]) > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["steps"]) == 2
    assert "add --device cpu" in capsys.readouterr().err
