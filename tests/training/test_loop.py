"""A step against a slow direct one, and against itself on several workers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn import functional

from tests.training.tiny import ACTIONS, save_tiny_world
from training.loop import Trainer, learning_rate, whole
from training.order import Order, micro_batches
from training.settings import WorldTraining
from training.world import WorldTask

BASE: dict[str, Any] = {
    "steps": 3, "batch_size": 6, "micro_batch_size": 2, "peak_lr": 1e-2, "warmup_steps": 1, "method": "full",
    "precision": "float32", "floor": 0.3,
}  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_world(tmp_path_factory.mktemp("world"))


def settings(**changes: Any) -> WorldTraining:
    return WorldTraining.model_validate(BASE | changes)


def rows(indices: Any) -> dict[str, Any]:
    """Made-up tokens, a function of the index."""
    made = [np.random.default_rng(int(index)) for index in indices]
    return {
        "obs": np.stack([random.integers(0, 32, 64, np.int32) for random in made]),
        "next_obs": np.stack([random.integers(0, 32, 64, np.int32) for random in made]),
        "distances": np.stack([random.random(64, np.float32) for random in made]),
        "action": [ACTIONS[int(index) % len(ACTIONS)] for index in indices],
    }


def run_steps(folder: Path, wanted: WorldTraining, rank: int = 0, workers: int = 1) -> dict[str, torch.Tensor]:
    """The trained weights after all steps, whole."""
    trainer = Trainer(WorldTask(wanted, folder), wanted, 3, CPU)
    order = Order([(np.arange(10), 1.0)], wanted.seed)
    for step in range(3):
        plan = micro_batches(
            order, step, batch_size=wanted.batch_size, micro_batch_size=wanted.micro_batch_size, rank=rank,
            workers=workers,
        )  # fmt: skip
        assert trainer.step(step, ((number, rows(indices)) for number, indices in plan)).is_finite
    return {name: whole(weight).clone() for name, weight in trainer.trained.items()}


def direct_loss(task: WorldTask, batch: dict[str, Any], floor: float | None) -> torch.Tensor:
    """The paper's objective written out, image by image and token by token, from the logits of a whole forward."""
    total = torch.zeros(())
    for row in range(len(batch["action"])):
        inputs, labels = task.world.sequences(
            batch["obs"][row : row + 1], batch["action"][row : row + 1], batch["next_obs"][row : row + 1]
        )
        logprobs = functional.log_softmax(task.model(**inputs).logits[0].float(), -1)
        places = [place for place in range(labels.shape[1]) if labels[0, place] != -100]
        distances = batch["distances"][row].astype(np.float64)
        weights = np.ones(64) if floor is None else floor + (1 - floor) * distances / distances.mean()
        for weight, place in zip(weights, places, strict=True):
            total = total - float(weight) * logprobs[place - 1, labels[0, place]] / 64
    return total / len(batch["action"])


@pytest.mark.parametrize("floor", [None, 0.3])
def test_loss_and_gradient_are_those_written_out(folder: Path, floor: float | None) -> None:
    task = WorldTask(settings(floor=floor), folder)
    batch = rows(range(3))
    loss = task.loss(task.model, batch)
    weights = [weight for weight in task.model.parameters() if weight.requires_grad]
    found = torch.autograd.grad(loss, weights)
    expected_loss = direct_loss(task, batch, floor)
    expected = torch.autograd.grad(expected_loss, weights)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_step_is_that_of_adamw_on_the_clipped_mean_gradient(folder: Path) -> None:
    wanted = settings(grad_clip=0.5)
    task = WorldTask(wanted, folder)
    mirror = copy.deepcopy(task.model)
    weights = [weight for weight in mirror.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": wanted.weight_decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=learning_rate(0, 3, wanted), betas=(0.9, 0.95))
    torch.autograd.backward(task.loss(mirror, rows(range(6))))
    norm = torch.nn.utils.clip_grad_norm_(weights, 0.5)
    adamw.step()
    trainer = Trainer(task, wanted, 3, CPU)
    result = trainer.step(0, [(number, rows(range(2 * number, 2 * number + 2))) for number in range(3)])
    assert result.grad_norm == pytest.approx(norm.item(), rel=1e-4)
    assert result.grad_norm > 0.5
    for one, other in zip(trainer.trained.values(), weights, strict=True):
        # AdamW's first step is the sign of the gradient: where that is nothing but rounding, so is the sign.
        assert (one - other).abs().mean() < 1e-5


def test_the_size_of_micro_batches_changes_nothing_but_rounding(folder: Path) -> None:
    together, apart = (run_steps(folder, settings(micro_batch_size=size)) for size in (6, 1))
    assert_close(together, apart)


def test_activation_checkpointing_changes_nothing(folder: Path) -> None:
    plain, saving = (run_steps(folder, settings(activation_checkpointing=flag)) for flag in (False, True))
    assert_close(plain, saving, 1e-6)


def test_a_loss_that_is_no_number_changes_no_weight(folder: Path) -> None:
    wanted = settings()
    trainer = Trainer(WorldTask(wanted, folder), wanted, 3, CPU)
    before = {name: weight.detach().clone() for name, weight in trainer.trained.items()}
    poisoned = rows(range(2)) | {"distances": np.full((2, 64), np.inf, np.float32)}
    result = trainer.step(0, [(0, rows(range(2))), (1, poisoned), (2, rows(range(2)))])
    assert not result.is_finite
    assert_close(before, trainer.trained, 0)
    assert all(weight.grad is None for weight in trainer.trained.values())


def test_warm_up_and_cosine() -> None:
    wanted = settings(warmup_steps=4, peak_lr=1.0)
    rates = [learning_rate(step, 20, wanted) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[12] == pytest.approx(0.5)
    assert 0 < rates[19] < rates[18] < 0.2
    # The steps of a small seed set: the peak is reached all the same, and left again.
    few = [learning_rate(step, 10, settings(warmup_steps=100, peak_lr=1.0)) for step in range(10)]
    assert few[:2] == [0.5, 1.0]
    assert few[9] < 0.1


WORKERS = {
    "full": {},
    # Three micro-batches for two workers: one of them has nothing to do in the second round.
    "lora with dropout": {"method": "lora", "peak_lr": 5e-2},
    "fsdp2": {"strategy": "fsdp2", "activation_checkpointing": True},
    "fsdp2 lora": {"strategy": "fsdp2", "method": "lora", "peak_lr": 5e-2},
}


@pytest.fixture(scope="module")
def of_two_workers(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    out = tmp_path_factory.mktemp("two")
    mp.spawn(_worker, (folder, out), nprocs=2)
    return torch.load(out / "weights.pt", weights_only=True)  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("kind", WORKERS)
def test_two_workers_end_where_one_does(
    folder: Path, of_two_workers: dict[str, dict[str, torch.Tensor]], kind: str
) -> None:
    alone = run_steps(folder, settings(**WORKERS[kind] | {"strategy": "ddp"}))
    assert_close(alone, of_two_workers[kind])


def _worker(rank: int, folder: Path, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{out}/meet", rank=rank, world_size=2)
    found = {kind: run_steps(folder, settings(workers=2, **WORKERS[kind]), rank, 2) for kind in WORKERS}
    if rank == 0:
        torch.save(found, out / "weights.pt")
    dist.destroy_process_group()


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 1e-4) -> None:
    """Each weight to a tolerance on average: AdamW turns the rounding of a gradient near zero into its sign."""
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert (weight - other[name]).abs().mean() <= tolerance, name
