"""Identities of fixed settings, pinned: what a lake has under them, the next version must find again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labeling import labeler
from labeling.labeler import LabelerSettings, resolve_labeler
from labeling.policy import load_policy
from models.settings import ModelSettings
from training.settings import DynamicsTraining, TrainingSettings, WorldTraining
from worldlake.options import ModelOptions, SamplingOptions

RELABELS = (
    "this labeler has another id now: every lake would be labeled again. Bring the setting, its default or its name "
    "back, or change the literal and say so in CHANGELOG.md"
)
REDECIDES = "this policy has another id now: no labeler of a lake that was labeled under it could resume"
RESTARTS = "these settings name another run now: the same command would train again instead of resuming"


@pytest.fixture(autouse=True)
def same_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions of the decoder and the flow are a part of the identity; here they are those of no machine."""
    monkeypatch.setattr(labeler, "version", lambda package: f"{package}-1")


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A Qwen2-VL, as far as anybody looks who loads no weights."""
    config = {"model_type": "qwen2_vl", "vision_config": {"patch_size": 14, "spatial_merge_size": 2}}
    images = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    for name, content in (("config.json", config), ("preprocessor_config.json", images)):
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return f"hf:{tmp_path}"


def labeler_id(monkeypatch: pytest.MonkeyPatch, **settings: object) -> str:
    # Of weights that are none.
    monkeypatch.setattr("models.loading.count_weights", lambda _: 0)
    return resolve_labeler(LabelerSettings.model_validate(settings), "cpu").id


def test_the_default_labeler(monkeypatch: pytest.MonkeyPatch) -> None:
    assert labeler_id(monkeypatch) == "aa4381cde2bc186f", RELABELS


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "0fe9e7e696f3ca92"),
        ({"sampling": {"sampler": {"method": "uniform"}}}, "90393b4f1447a134"),
        ({"sampling": {"decoder": "decord", "max_clip_seconds": 5, "jpeg_quality": 90}}, "d806a0679bd4867d"),
        (
            {"model": {"prompt": "what moves", "image_size": 224, "dtype": "bfloat16", "pair_layout": "images"}},
            "bd7c213e31bca7cc",
        ),
        ({"model": {"max_new_tokens": 16}}, "22d56ecf4b7a6196"),
    ],
    ids=str,
)
def test_labelers_of_a_model_of_the_hub(
    monkeypatch: pytest.MonkeyPatch, model: str, settings: dict[str, dict[str, object]], expected: str
) -> None:
    named = settings | {"model": {"name": model, **settings.get("model", {})}}
    assert labeler_id(monkeypatch, **named) == expected, RELABELS


def test_what_labels_alike_is_one_labeler(monkeypatch: pytest.MonkeyPatch) -> None:
    default = labeler_id(monkeypatch)
    assert labeler_id(monkeypatch, model=ModelSettings(batch_size=1)) == default
    assert labeler_id(monkeypatch, model=ModelOptions(), sampling=SamplingOptions()) == default, "as the command does"


@pytest.mark.parametrize(("name", "expected"), [("builtin", "dd43f367fc4eb960"), ("default", "2726e2385f1a71ae")])
def test_policies_that_ship(name: str, expected: str) -> None:
    assert load_policy(name).id == expected, REDECIDES


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (DynamicsTraining(epochs=3, model="hf:owner/name"), "dynamics-6dbf3110"),
        (WorldTraining(steps=100, floor=0.3, sources=("{datasets: [a], factor: 15}",)), "world-1425f53d"),
    ],
    ids=lambda value: getattr(value, "task", ""),
)
def test_names_of_training_runs(settings: TrainingSettings, expected: str) -> None:
    assert settings.default_run() == expected, RESTARTS
