"""The training of a builtin model: `training.loop.Trainer` in one process, with checkpoints in a local folder."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.loop import Task, Trainer
from training.settings import TrainingSettings


@dataclass(frozen=True)
class Recipe:
    """A training from the command line. `folder` holds `data` and a folder of each model."""

    folder: Path
    shards: int
    steps: int
    batch: int
    """Pairs of a step."""
    peak: float
    """Highest learning rate."""
    every: int
    """Steps between checkpoints, each with figures on held-out pairs."""
    seed: int

    def settings(self) -> dict[str, Any]:
        """Values of `TrainingSettings` that the recipe decides."""
        sizes = {"batch_size": self.batch, "micro_batch_size": self.batch}
        return {"method": "full", "steps": self.steps, "seed": self.seed, "peak_lr": self.peak, **sizes}


def train(
    task: Task,
    settings: TrainingSettings,
    batch: Callable[[int], dict[str, Any]],
    figures: Callable[[], dict[str, float]],
    out: Path,
    every: int,
) -> None:
    """Train a task on `batch(step)` from the checkpoint in `out`; print figures and write one every N steps.

    Raises RuntimeError where the loss or the gradient is not finite; the checkpoint before it is kept.
    """
    assert settings.steps is not None
    trainer = Trainer(task, settings, settings.steps, torch.device("cpu"))
    started = time.monotonic()
    losses: list[float] = []
    for step in range(load_checkpoint(out, trainer), settings.steps):
        result = trainer.step(step, [(step, batch(step))])
        if not result.is_finite:
            raise RuntimeError(f"step {step + 1}: loss {result.loss}, gradient norm {result.grad_norm}")
        losses.append(result.loss)
        if (step + 1) % every == 0 or step + 1 == settings.steps:
            line: dict[str, float] = {"step": step + 1, "s": round(time.monotonic() - started)}
            line["loss"] = round(math.fsum(losses) / len(losses), 4)
            task.model.eval()
            print(json.dumps(line | figures()), flush=True)
            task.model.train()
            save_checkpoint(out, step + 1, trainer)
            losses = []


def load_checkpoint(out: Path, trainer: Trainer) -> int:
    """Load the checkpoint in `out` where there is one; return the number of steps it has behind it."""
    path = out / "checkpoint.pt"
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    trainer.task.model.load_state_dict(state["model"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def save_checkpoint(out: Path, step: int, trainer: Trainer) -> None:
    """Write the checkpoint of a step in place of the one before."""
    out.mkdir(parents=True, exist_ok=True)
    state = {
        "step": step,
        "model": trainer.task.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
    }
    torch.save(state, out / "checkpoint.part")
    (out / "checkpoint.part").rename(out / "checkpoint.pt")


def trained_weights(out: Path) -> dict[str, torch.Tensor]:
    """The weights of the checkpoint in `out`, by name."""
    weights: dict[str, torch.Tensor] = torch.load(out / "checkpoint.pt", weights_only=True)["model"]
    return weights
