"""Training of the builtin models: a few steps of each, resumed and exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models.loading import load_dynamics
from models.settings import ModelSettings, WorldSettings
from models.world_loading import load_world
from sample_world.pairs import all_actions, clip_pairs
from training.builtin import __main__ as command
from training.builtin import data, tokenizer
from training.builtin.data import shrunk
from training.builtin.dynamics import new_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard of one clip."""
    path = tmp_path_factory.mktemp("builtin")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "CLIPS_PER_SHARD", 1)
        data.generate(path / "data", 1)
    return path


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One held-out clip, and a codebook that starts at the second step."""
    monkeypatch.setattr(data, "EVALUATION_CLIPS", 1)
    monkeypatch.setattr(tokenizer, "WARM_UP", 1)


def fit(monkeypatch: pytest.MonkeyPatch, kind: str, folder: Path, steps: int) -> None:
    options = ["--folder", str(folder), "--batch", "8", "--every", "1", "--shards", "1", "--steps", str(steps)]
    monkeypatch.setattr("sys.argv", ["training.builtin", "fit", kind, *options])
    command.main()


def export(monkeypatch: pytest.MonkeyPatch, kind: str, folder: Path) -> Path:
    weights = folder / "weights"
    monkeypatch.setattr(
        "sys.argv", ["training.builtin", "export", kind, "--folder", str(folder), "--weights", str(weights)]
    )
    command.main()
    return weights


def whole_and_resumed(monkeypatch: pytest.MonkeyPatch, kind: str, folder: Path, tmp_path: Path) -> Path:
    """Train three steps in one go and in two, and compare the weights; returns the folder of the first."""
    for name, runs in (("whole", [3]), ("parts", [2, 3])):
        (tmp_path / name).mkdir()
        for made in ("data", "tokenizer"):
            if (folder / made).exists():
                (tmp_path / name / made).symlink_to(folder / made)
        for steps in runs:
            # The schedule depends on the number of steps, and so does the weight of the second step.
            monkeypatch.setattr("training.loop.learning_rate", lambda step, steps, settings: settings.peak_lr)
            fit(monkeypatch, kind, tmp_path / name, steps)
    whole, parts = (
        torch.load(tmp_path / name / kind / "checkpoint.pt", weights_only=True) for name in ("whole", "parts")
    )
    assert whole["step"] == parts["step"] == 3
    assert all(torch.equal(whole["model"][name], parts["model"][name]) for name in whole["model"])
    return tmp_path / "whole"


def test_the_tokenizer_gives_every_action_back() -> None:
    text_tokenizer = new_tokenizer()
    for action in all_actions():
        assert text_tokenizer.decode(text_tokenizer(action)["input_ids"]) == action


@pytest.mark.slow
def test_a_dynamics_model_is_trained_resumed_and_exported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = whole_and_resumed(monkeypatch, "dynamics", folder, tmp_path)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [line["step"] for line in lines] == [1, 2, 3, 1, 2, 3]
    assert all(0 <= line["all"] <= 1 and line["loss"] > 0 for line in lines)
    pairs = clip_pairs(77)
    model = load_dynamics(ModelSettings(name=f"hf:{export(monkeypatch, 'dynamics', trained)}"), "cpu")
    assert len(model.annotate(pairs.frames[pairs.index[:2, 0]], pairs.frames[pairs.index[:2, 1]])) == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_image_tokenizer_and_the_world_model_over_it_are_trained_resumed_and_exported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer").mkdir()
    trained = whole_and_resumed(monkeypatch, "tokenizer", folder, tmp_path / "tokenizer")
    (tmp_path / "world").mkdir()
    trained = whole_and_resumed(monkeypatch, "world", trained, tmp_path / "world")
    pairs = shrunk(clip_pairs(77), tokenizer.IMAGE_SIZE)
    world = load_world(WorldSettings(name=f"hf:{export(monkeypatch, 'world', trained)}"), "cpu")
    drawn = world.sample(pairs.frames[pairs.index[:2, 0]], pairs.actions[:2], 1)
    assert drawn.shape == (2, 1, tokenizer.IMAGE_SIZE, tokenizer.IMAGE_SIZE, 3)
