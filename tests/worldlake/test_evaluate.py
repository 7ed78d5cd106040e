"""Evaluation as its user runs it, on pairs of the sample world whose truth is in the lake."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from lake.ids import triple_id
from lake.runs import states
from lake.tables import Lake, now
from lake.writer import Writer
from sample_world.clips import FPS, make_clip, span_between
from tests.evaluation.test_judge import endpoint, saying
from tests.models.tiny import save_tiny
from training.builtin.world import new_model, new_tokenizer, write_folder
from worldlake.cli import main

FRAMES, PAIRS = 120, 6
HUMAN = "human:sample"
PROBES = ("random", "counterfactual", "inverse", "copy")


def jpeg(image: Any, side: int = 64) -> bytes:
    small = cv2.cvtColor(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)
    encoded: bytes = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    return encoded


def labeled(seed: int, video: str) -> list[dict[str, Any]]:
    """A triple for every event of a clip, as ingesting labeled rows writes it."""
    clip = make_clip(seed, frames=FRAMES)
    images = list(clip.images())
    return [
        {
            "triple_id": triple_id(video, event.start_frame, event.end_frame, HUMAN),
            "labeler_id": HUMAN,
            "video_id": video,
            "uri": f"/videos/sample-{seed:06d}.mp4",
            "dataset": "sample",
            "split": "test",
            "obs_time_s": event.start_frame / FPS,
            "next_time_s": event.end_frame / FPS,
            "action": span_between(clip.events, event.start_frame, event.end_frame).action,
            "labeled_at": now(),
            "obs": jpeg(images[event.start_frame]),
            "next_obs": jpeg(images[event.end_frame]),
        }
        for event in clip.events
    ]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    target = Lake(str(tmp_path_factory.mktemp("evaluate") / "lake"))
    target.create()
    rows: list[dict[str, Any]] = []
    for seed in range(70_000, 70_010):
        Writer(target).append(
            "videos", [{"video_id": f"v{seed}", "uri": f"/videos/sample-{seed:06d}.mp4", "frames": FRAMES}]
        )
        rows += labeled(seed, f"v{seed}")
        if len(rows) >= PAIRS:
            break
    rows = rows[:PAIRS]
    Writer(target).append("triples", rows)
    bad = {**rows[0], "obs_pts": 1, "dataset": "bad", "uri": "/elsewhere.mp4"}
    large = [jpeg(np.full((96, 96, 3), gray, np.uint8), 96) for gray in (0, 200)]
    more = [
        {"triple_id": "0-broken", "next_obs": b"no image"},
        {"triple_id": "0-large", "obs": large[0], "next_obs": large[1]},
        {"triple_id": "0-empty", "action": " ", "dataset": "empty"},
        {"triple_id": "0-machine", "labeler_id": "0123456789abcdef", "dataset": "machine"},
    ]
    Writer(target).append("triples", [{**bad, **columns} for columns in more])
    return target.uri


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    model = new_model(new_tokenizer())
    model.model.vqmodel.quantize.embedding.weight.data.normal_(std=0.5)
    folder = tmp_path_factory.mktemp("world")
    write_folder(model, folder)
    return f"hf:{folder}"


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[Any, str, str]:
    """Exit code, standard output and standard error of `worldlake evaluate`."""
    monkeypatch.setattr(sys, "argv", ["worldlake", "evaluate", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def test_a_dynamics_model(
    lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "new" / "report.html"
    arguments = ("dynamics", "--lake", lake, "--dataset", "sample", "--batch-size", "4", "--report", str(report))
    code, out, err = run(capsys, monkeypatch, *arguments, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["pairs"], found["unreadable"]) == (PAIRS, 0)
    figures = found["figures"]["dynamics"]
    # The builtin model knows this world.
    assert figures["exact_match"]["value"] >= 0.5
    assert figures["exact_match"]["n"] == PAIRS
    for probe in PROBES:
        assert figures[f"prefers_true_to_{probe}"]["value"] > 0.5
    page = report.read_text()
    assert page.count("data:image/png") == 2 * PAIRS
    assert "http" not in re.sub(r"data:image/png;base64,[\w+/=]+", "", page)
    (state,) = [state for state in states(Lake(lake)) if state.run_id == found["run_id"]]
    assert (state.kind, state.status) == ("evaluate", "finished")
    assert state.config["figures"] == found["figures"]
    assert state.config["triples_version"] >= 1
    assert state.counts == {"pairs": PAIRS, "unreadable": 0}
    again = json.loads(run(capsys, monkeypatch, *arguments, "--json")[1])
    assert again["figures"] == found["figures"]
    assert "exact_match" in run(capsys, monkeypatch, *arguments)[1]


@pytest.mark.slow
def test_a_world_model(
    lake: str, world: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    referee = save_tiny("qwen2_vl", tmp_path / "referee")
    report = tmp_path / "report.html"
    arguments = ["world", "--lake", lake, "--dataset", "sample", "--world", world, "-n", "2", "--oracle"]
    arguments += ["--referee", f"hf:{referee}", "--report", str(report), "--json"]
    code, out, err = run(capsys, monkeypatch, *arguments)
    assert code == 0, err
    found = json.loads(out)
    methods = found["figures"]
    assert list(methods) == ["best of 2", "one sample", "copy of obs", "true next_obs, tokenized", "likelihoods"]
    for name in ("best of 2", "one sample", "copy of obs", "true next_obs, tokenized"):
        assert methods[name]["changed_psnr_db"]["n"] == PAIRS
        assert methods[name]["oracle_agrees"]["n"] == methods[name]["referee_agrees"]["n"] == PAIRS
    assert methods["copy of obs"]["copy_rate"]["value"] == 1
    assert methods["likelihoods"]["prefers_true_to_random"]["n"] == PAIRS
    page = report.read_text()
    assert page.count("data:image/png") == PAIRS * (4 + 2)
    assert page.count('<figure class="chosen">') == PAIRS
    (state,) = [state for state in states(Lake(lake)) if state.run_id == found["run_id"]]
    assert state.config["n"] == 2
    assert json.loads(run(capsys, monkeypatch, *arguments)[1])["figures"] == methods


def test_a_judge(
    lake: str, world: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    report = tmp_path / "report.html"
    replies = [saying('{"reason": "<b>good", "editing_success": 8, "minimal_editing": 6}'), saying("no")]
    with endpoint(lambda question, number: replies[number % 2]) as (url, asked):
        arguments = ("--lake", lake, "--dataset", "sample", "--limit", "2", "--world", world, "-n", "1")
        judge = ("--judge", url, "--judge-model", "judge-1", "--report", str(report), "--json")
        code, out, err = run(capsys, monkeypatch, "world", *arguments, *judge)
    assert code == 0, err
    found = json.loads(out)["figures"]["one sample"]
    assert (found["judge_score"]["value"], found["judge_score"]["n"]) == (6, 1)
    assert (found["judge_unparsed"]["value"], found["judge_unparsed"]["n"]) == (0.5, 2)
    assert asked[0][2]["model"] == "judge-1"
    page = report.read_text()
    assert "&lt;b&gt;good" in page
    recorded = json.dumps([state.config for state in states(Lake(lake))])
    assert "judge-1" in recorded
    assert "secret" not in recorded + page + out


def test_pairs_that_cannot_be_read_are_counted_and_sizes_mixed(
    lake: str, world: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--lake", lake, "--where", "dataset = 'bad' OR action LIKE '%red%'", "--json")
    found = json.loads(run(capsys, monkeypatch, "dynamics", *arguments)[1])
    assert found["unreadable"] == 1
    assert found["pairs"] >= 1
    plain = json.loads(run(capsys, monkeypatch, "world", *arguments, "--world", world, "-n", "1")[1])
    assert (plain["pairs"], plain["unreadable"]) == (found["pairs"], 1)
    assert "referee_agrees" in plain["figures"]["one sample"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dynamics", "--lake", "NOWHERE"], "worldlake ingest"),
        (["dynamics", "--lake", "LAKE", "--split", "half"], "validation"),
        (["dynamics", "--lake", "LAKE", "--split", "train"], "--labeler"),
        (["dynamics", "--lake", "LAKE", "--dataset", "nothing"], "--dataset"),
        (["dynamics", "--lake", "LAKE", "--where", "color = 1"], "color"),
        (["dynamics", "--lake", "LAKE", "--dataset", "empty"], "empty action"),
        (["dynamics", "--lake", "LAKE", "--where", "triple_id = '0-broken'"], "can be read"),
        (["dynamics", "--lake", "LAKE", "--model", "gpt"], "hf:"),
        (["dynamics", "--lake", "LAKE", "--dtype", "int4"], "bfloat16"),
        (["dynamics", "--lake", "LAKE", "--report", "/proc/report.html"], "/proc/report.html"),
        (["dynamics", "--lake", "LAKE", "--limit", "0"], "--limit"),
        (["world", "--lake", "LAKE", "--world", "gpt"], "hf:"),
        (["world", "--lake", "LAKE", "--world", "WORLD", "-n", "0"], "-n"),
        (["world", "--lake", "LAKE", "--world", "WORLD", "--temperature", "0"], "-n 1"),
        (["world", "--lake", "LAKE", "-n", "1", "--temperature", "0", "--top-k", "5"], "--top-k"),
        (["world", "--lake", "LAKE", "--world", "WORLD", "--dtype", "int4"], "bfloat16"),
        (["world", "--lake", "LAKE", "--world", "WORLD", "--report", "/tmp"], "/tmp"),
        (["world", "--lake", "LAKE", "--world", "WORLD", "--referee", "builtin"], "referee"),
        (["world", "--lake", "LAKE", "--world", "WORLD", "--dataset", "bad", "--oracle"], "--oracle"),
        (["world", "--lake", "LAKE", "--world", "WORLD", "--dataset", "sample", "--judge", "host/v1"], "https://"),
        (["world", "--lake", "LAKE", "--dataset", "sample", "--judge", "https://me:secret@host/v1"], "OPENAI_API_KEY"),
        (["world", "--lake", "LAKE", "--world", "WORLD", "--dataset", "sample", "--features", "clip"], "hf:"),
        (["word", "--lake", "LAKE"], "word"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    says: str,
    lake: str,
    world: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = {"LAKE": lake, "WORLD": world, "NOWHERE": str(tmp_path / "none")}
    code, out, err = run(capsys, monkeypatch, *(names.get(argument, argument) for argument in arguments))
    assert code == 2, err
    assert len((out + err).strip().splitlines()) == 1, out + err
    assert says in err


def test_help_teaches(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for command in ([], ["dynamics"], ["world"]):
        code, out, _ = run(capsys, monkeypatch, *command, "--help")
        assert code == 0
        assert len(out.splitlines()) > 5
