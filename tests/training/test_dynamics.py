"""Dynamics models in training: the loss against one written out, and a run from triples to labels."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from lake.tables import Lake, now
from lake.writer import Writer
from models.loading import load_dynamics, resolve
from models.protocols import Images
from models.settings import ModelSettings
from tests.models.tiny import save_tiny
from tests.training.tiny import add_triples, picture
from training.dynamics import load_task
from training.prefetch import decode_images
from training.run import train
from training.settings import DynamicsTraining

# Words that the tiny tokenizer has; one is longer than the others.
ACTIONS = ["the hand moves left", "nothing happens", "the red ball moves slowly away from the door"]
BASE: dict[str, Any] = {
    "steps": 30, "batch_size": 4, "micro_batch_size": 2, "peak_lr": 1e-2, "warmup_steps": 2, "precision": "float32",
}  # fmt: skip


def settings(folder: Path, **changes: Any) -> DynamicsTraining:
    return DynamicsTraining.model_validate(BASE | {"model": f"hf:{folder}"} | changes)


@pytest.fixture(scope="module", params=["qwen2_vl", "idefics3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(request.param, tmp_path_factory.mktemp(request.param))


def images(count: int) -> Images:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def test_the_loss_is_the_mean_over_pairs_of_the_mean_over_tokens(folder: Path) -> None:
    task = load_task(settings(folder, image_size=32, method="full"), torch.device("cpu"))
    obs, after = images(6)[:3], images(6)[3:]
    together = task.loss(task.model, {"obs": obs, "next_obs": after, "action": ACTIONS})
    means = []
    for row, action in enumerate(ACTIONS):
        inputs, labels = task._dynamics.sequences(obs[row : row + 1], after[row : row + 1], [action])
        logprobs = task.model(**inputs).logits[0].log_softmax(-1)
        start = logprobs.shape[0] - labels.shape[1]
        tokens = [(start + i, int(token)) for i, token in enumerate(labels[0]) if token != -100]
        # Every word and the end token.
        assert len(tokens) == len(action.split()) + 1
        means.append(-sum(logprobs[place - 1, token] for place, token in tokens) / len(tokens))
    assert together.item() == pytest.approx(torch.stack(means).mean().item(), rel=1e-4)


def test_lora_adapts_the_language_model_alone(folder: Path) -> None:
    task = load_task(settings(folder, image_size=32), torch.device("cpu"))
    trained = [name for name, weight in task.model.named_parameters() if weight.requires_grad]
    assert len(trained) == 2 * 7 * 2, "two layers of seven matrices, each with A and B"
    assert all("lora_" in name and "vision" not in name and "visual" not in name for name in trained)


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_makes_an_adapter_that_names_what_it_was_shown(ray_cluster: str, tmp_path: Path) -> None:
    model = save_tiny("qwen2_vl", tmp_path / "model")
    lake = Lake(str(tmp_path / "lake"))
    # Images of another size than the model's: they are resized off the training process.
    ids = add_triples(lake, 8, size=48)
    bad = {"video_id": "v", "triple_id": "bad", "split": "train", "action": "a", "dataset": "one", "obs": b"no image"}
    bad |= {"next_obs": picture(0), "labeled_at": now()}
    Writer(lake).append(
        "triples", [bad | {"labeler_id": "human:test"}, bad | {"triple_id": "guess", "labeler_id": "a model"}]
    )
    shown = {"image_size": 32, "prompt": "what moves", "pair_layout": "images"}
    wanted = settings(model, lora_dropout=0.0, **shown)
    done = train(lake, wanted, run_id="adapter", stop=threading.Event())
    assert (done.status, done.triples) == ("finished", len(ids)), "what a model guessed is not learned from unasked"
    [failure] = lake.read("failures", ["triple_id", "stage", "message"]).to_pylist()
    assert failure == {"triple_id": "bad", "stage": "decode", "message": "an image of a triple cannot be decoded"}
    as_trained = resolve(ModelSettings(name=f"hf:{model}", adapter=done.model), "cpu").settings
    assert {name: getattr(as_trained, name) for name in shown} == shown, "it is asked as it was trained"
    adapted = load_dynamics(as_trained, "cpu")
    begun = load_dynamics(ModelSettings(name=f"hf:{model}", **shown), "cpu")
    rows = lake.read("triples", ["obs", "next_obs", "action"], pc.is_in(pc.field("triple_id"), pa.array(ids)))
    obs, after = (decode_images(rows[name], 32) for name in ("obs", "next_obs"))
    actions = rows["action"].to_pylist()
    assert adapted.score(obs, after, actions).mean() > begun.score(obs, after, actions).mean() + 0.5


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_whose_image_size_the_model_decides_goes_on(ray_cluster: str, tmp_path: Path) -> None:
    model = save_tiny("qwen2_vl", tmp_path / "model")
    lake = Lake(str(tmp_path / "lake"))
    add_triples(lake, 4, size=48)
    # The size is left to the model, and is in the record of the run all the same.
    wanted = settings(model, image_size=None)
    assert train(lake, wanted, stop=threading.Event()).status == "finished"
    assert train(lake, wanted, stop=threading.Event()).status == "nothing to do"
