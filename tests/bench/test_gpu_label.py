"""The benchmark runs, small, on a CPU; what it measures there means nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.gpu_label import main


def test_it_measures_every_variant_and_writes_only_where_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--shape", "tiny", "--device", "cpu", "--image-size", "56", "--batch-size", "3", "--repeats", "1"]
    out = tmp_path / "results" / "gpu_label.json"
    assert main([*small, "--new-tokens", "4", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    ways = [(result["batch_size"], result["vision_attention"], result["cache"]) for result in report["results"]]
    chunked = [(3, "flash_in_chunks", cache) for cache in ("dynamic", "static", "compiled")]
    assert ways == [(1, "sdpa", "dynamic"), (3, "sdpa", "dynamic"), *chunked]
    for result in report["results"]:
        assert result["annotate_pairs_per_s"] > 0
        assert result["prefill_tflop"] > 0
        assert result["decode_gb"] > 0
    # The work of a batch is that of its pairs.
    one, three = report["results"][0], report["results"][1]
    assert three["prefill_tflop"] == pytest.approx(3 * one["prefill_tflop"], rel=1e-6)
    assert "pairs of 56 px" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "add --device cpu --shape tiny" in capsys.readouterr().err
