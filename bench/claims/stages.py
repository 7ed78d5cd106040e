"""The stages of a seed: train, label, verify, predict; with the parts of worldlake that do it in a lake."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.world import Question, changed_pixels
from labeling.annotate import Annotate
from labeling.policy import Bounds, Policy
from labeling.stream import SAMPLES, block
from lake.scores import NAMES
from models.loading import load_dynamics
from models.protocols import Images
from models.settings import ModelSettings, TokenSampling, WorldSettings
from models.verification import predict, resized
from models.world_loading import BUILTIN_WORLD, load_image_tokenizer, load_world
from sample_world.oracle import oracle_of
from sample_world.pairs import Pairs
from training.builtin import dynamics as builtin_dynamics
from training.builtin import world as builtin_world
from training.builtin.data import shrunk, training_batch, with_action
from training.dynamics import load_task
from training.loop import Task, Trainer
from training.settings import DynamicsTraining, TrainingSettings, WorldTraining
from training.weights import export
from training.world import WorldTask

CPU = torch.device("cpu")

SAMPLING = TokenSampling(temperature=0.7)
"""At 1 a wrong token among 64 is rather likely; at 0 all candidates are one."""


def new_dynamics(folder: Path, seed: int) -> None:
    """Write an untrained dynamics model of the builtin's shape."""
    torch.manual_seed(seed)
    builtin_dynamics.write_folder(builtin_dynamics.new_model(len(builtin_dynamics.new_tokenizer())), folder)


def new_world(folder: Path) -> None:
    """Write an untrained world model of the builtin's shape, with the builtin's image tokenizer."""
    torch.manual_seed(0)
    images = load_image_tokenizer(BUILTIN_WORLD, None, "cpu")
    model = builtin_world.new_model(builtin_world.new_tokenizer())
    model.model.vqmodel.load_state_dict(images.weights())
    builtin_world.write_folder(model, folder, images.identity["hold"])


def train_dynamics(base: Path, out: Path, pairs: Pairs, settings: DynamicsTraining) -> None:
    """Train the model in `base` to name pairs, each turned, mirrored and swapped at random, and write it to `out`."""

    def batch_of(drawn: Pairs) -> dict[str, Any]:
        obs, next_obs = (drawn.frames[drawn.index[:, i]] for i in (0, 1))
        return {"obs": obs, "next_obs": next_obs, "action": drawn.actions}

    _fit(load_task(settings, CPU), pairs, settings, batch_of, base, out)


def train_world(base: Path, out: Path, pairs: Pairs, settings: WorldTraining) -> None:
    """As `train_dynamics`, to predict next_obs. Pairs without a nameable action are left out."""
    images = load_image_tokenizer(base, None, "cpu")

    def batch_of(drawn: Pairs) -> dict[str, Any]:
        with torch.autocast("cpu", torch.bfloat16):
            obs, after, distances = images.encode_pairs(*(drawn.frames[drawn.index[:, i]] for i in (0, 1)))
        return {"obs": obs, "next_obs": after, "distances": distances, "action": drawn.actions}

    _fit(WorldTask(settings, base), shrunk(with_action(pairs), images.image_size), settings, batch_of, base, out)


def _fit(
    task: Task,
    pairs: Pairs,
    settings: TrainingSettings,
    batch_of: Callable[[Pairs], dict[str, Any]],
    base: Path,
    out: Path,
) -> None:
    assert settings.steps is not None
    trainer = Trainer(task, settings, settings.steps, CPU)
    # Half the time of a step, on one core: attention's own backward pass for CPUs is slower than plain products.
    trainer.model = torch.compile(trainer.model)  # type: ignore[assignment]
    for step in range(settings.steps):
        with sdpa_kernel(SDPBackend.MATH):
            result = trainer.step(step, [(step, batch_of(training_batch(pairs, step, settings.batch_size)))])
        if not result.is_finite:
            raise RuntimeError(f"{out}: the loss of step {step} is not finite")
    export(task, task.model.state_dict(), base, out)


@dataclass(frozen=True)
class Labels:
    """A dynamics model's answers for pairs, with scores as labeling computes them."""

    actions: list[str]
    scores: list[dict[str, float | None]]

    def accepted(self, policy: Policy) -> list[str | None]:
        """The actions; None for those that the policy rejects."""
        return [
            None if policy.reasons(scores, None) else action
            for action, scores in zip(self.actions, self.scores, strict=True)
        ]


def label(folder: Path, pairs: Pairs) -> Labels:
    """Label pairs by the stage that labels a lake."""
    rows = [
        {"triple_id": f"{row:08d}", **{name: _png(pairs.frames[pairs.index[row, i]]) for name, i in _FRAMES}}
        for row in range(len(pairs.actions))
    ]
    annotate = Annotate(ModelSettings(name=f"hf:{folder}", max_new_tokens=16, batch_size=64))
    labeled = annotate(block(rows, SAMPLES)).to_pylist()
    return Labels([row["action"] for row in labeled], [{name: row[name] for name in NAMES} for row in labeled])


_FRAMES = (("obs", 0), ("next_obs", 1))


def _png(image: npt.NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()


def fitted_policy(labels: Labels, truth: list[str], precision: float) -> Policy:
    """The shipped floors, and the lowest confidence from which on labels reach a precision on pairs with a true name.

    Where none does, the confidence that a tenth of the labels exceed.
    """
    floors = {"direction": Bounds(min=-0.1), "copy": Bounds(min=0.1), "text": Bounds(min=1.0)}
    kept = [
        (scores["confidence"], action == true)
        for action, scores, true in zip(labels.actions, labels.scores, truth, strict=True)
        if not Policy(default=floors).reasons(scores, None)
    ]
    kept.sort(reverse=True)
    right = np.cumsum([is_right for _, is_right in kept])
    reached = [count for count in range(10, len(kept) + 1) if right[count - 1] >= precision * count]
    count = reached[-1] if reached else max(1, len(labels.actions) // 10)
    least = kept[min(count, len(kept)) - 1][0] if kept else 0.0
    return Policy(default={**floors, "confidence": Bounds(min=least)})


@dataclass(frozen=True)
class Predictions:
    """Of every question and candidate, shape (questions, n): what the oracle says of it, and how it was scored.

    `hits`: it shows the asked action. `scores`: log p(action | obs, candidate). `changed` and `unchanged`: squared
    error over the pixels that truly change and the others, in [0, 1], summed; `pixels`, shape (questions, 2), how many
    there are of both.
    """

    hits: npt.NDArray[np.bool_]
    scores: npt.NDArray[np.float32]
    changed: npt.NDArray[np.float64]
    unchanged: npt.NDArray[np.float64]
    pixels: npt.NDArray[np.int64]


def foretell(
    world: Path, dynamics: Path, asked: list[Question], obs: Images, after: Images, n: int, seed: int
) -> Predictions:
    """Draw `n` candidates for each question, score them by a dynamics model and judge them by the oracle."""
    actions = [question.action for question in asked]
    drawn = predict(
        load_world(WorldSettings(name=f"hf:{world}", batch_size=16, sampling=SAMPLING), "cpu"),
        load_dynamics(ModelSettings(name=f"hf:{dynamics}", batch_size=64), "cpu"),
        obs,
        actions,
        n,
        seed=seed,
        keep_candidates=True,
    )
    assert drawn.candidates is not None
    mask = changed_pixels(obs, after)
    hits = np.zeros((len(asked), n), bool)
    errors = np.zeros((2, len(asked), n))
    for row, question in enumerate(asked):
        oracle = oracle_of(question.clip, question.frame)
        for i, image in enumerate(resized(drawn.candidates[row], after.shape[1])):
            hits[row, i] = oracle.judge(image).action == question.action
            error = np.square((image.astype(np.float64) - after[row]) / 255).mean(-1)
            errors[:, row, i] = error[mask[row]].sum(), error[~mask[row]].sum()
    pixels = np.stack([mask.sum((1, 2)), (~mask).sum((1, 2))], 1)
    return Predictions(hits, drawn.scores, errors[0], errors[1], pixels)


def exact_match(folder: Path, asked: list[Question], obs: Images, after: Images) -> list[bool]:
    """Return whether a dynamics model names each event."""
    dynamics = load_dynamics(ModelSettings(name=f"hf:{folder}", max_new_tokens=16, batch_size=64), "cpu")
    return [
        annotation.action == question.action
        for annotation, question in zip(dynamics.annotate(obs, after), asked, strict=True)
    ]
