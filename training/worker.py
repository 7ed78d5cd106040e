"""The function of every worker of a training: resume from the newest checkpoint, step, log, save, write the model."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.actor import ActorHandle
from torch.distributed.tensor import DTensor, distribute_tensor

from lake.commits import Claim
from lake.errors import Refused, Superseded
from lake.metrics import TRAIN_PAIRS, TRAIN_WAIT_SECONDS
from lake.storage import StorageConfig, join
from models.folders import hash_files
from training.checkpoint import Checkpoints, Tensors
from training.driver_channel import StopRequest
from training.dynamics import DynamicsTask, load_task
from training.loop import MOMENTS, StepResult, Trainer, whole
from training.order import Order, micro_batches
from training.prefetch import Arrays, Rows, feed
from training.settings import DynamicsTraining, TrainingSettings, WorldTraining
from training.weights import export
from training.world import WorldTask

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """A training, as its workers get it: with nothing left open."""

    settings: TrainingSettings
    folder: Path
    """Of the model to start from, on every machine."""
    steps: int
    order: Order
    rows: Rows
    storage: StorageConfig
    uri: str
    """Of the run: where checkpoints and the model go."""
    channel: ActorHandle
    claim: Claim
    """Of the process that runs this job: it ends when another one takes over."""


def work(config: dict[str, Any]) -> None:
    """Train to the end of the job, or to the step at which the driver requests a stop."""
    job: Job = ray.get(config["job"])
    try:
        _train(job)
    except (Refused, Superseded) as error:
        # All workers refuse at the same place (see `together`), so none of them waits for this one.
        if _rank() == 0:
            ray.get(job.channel.refuse.remote(error))


def _train(job: Job) -> None:
    settings = job.settings
    device = ray.train.torch.get_device()
    task = together(lambda: _new_task(job, device))
    trainer = Trainer(task, settings, job.steps, device)
    checkpoints = Checkpoints(job.storage, job.uri, job.claim)
    first = restore(trainer, checkpoints)
    log, stop = _Log(job), StopRequest(job.channel)
    batches = _Batches(job, first)
    for step in range(first, job.steps):
        result = trainer.step(step, batches.of(step), stop.requested())
        if not result.is_finite:
            raise Refused(_not_finite(result, step, checkpoints))
        log.step(step, result, batches)
        is_last = result.stop or step + 1 == job.steps
        if is_last or (step + 1) % settings.checkpoint_every == 0:
            save(trainer, checkpoints, step + 1)
        if result.stop and step + 1 < job.steps:
            return
    _export(job, trainer)


def _new_task(job: Job, device: torch.device) -> WorldTask | DynamicsTask:
    if isinstance(job.settings, WorldTraining):
        return WorldTask(job.settings, job.folder)
    assert isinstance(job.settings, DynamicsTraining)
    return load_task(job.settings, device)


class _Batches:
    """This worker's micro-batches, and how long the model waited for them."""

    def __init__(self, job: Job, first: int) -> None:
        self._job = job
        self.waited_s = 0.0
        steps = range(first, job.steps)
        self._coming = feed(job.rows, (indices for step in steps for _, indices in self._plan(step)))

    def of(self, step: int) -> Iterator[tuple[int, Arrays]]:
        """The micro-batches of a step, with their numbers. Steps have to be asked for in order."""
        for number, _ in self._plan(step):
            begun = time.perf_counter()
            batch = next(self._coming)
            self.waited_s += time.perf_counter() - begun
            yield number, batch

    def _plan(self, step: int) -> Iterator[tuple[int, Any]]:
        settings = self._job.settings
        return micro_batches(
            self._job.order,
            step,
            batch_size=settings.batch_size,
            micro_batch_size=settings.micro_batch_size,
            rank=_rank(),
            workers=_workers(),
        )


@dataclass
class _Log:
    """Means over the steps between two lines, which the first worker sends to the driver."""

    job: Job
    losses: list[float] = field(default_factory=list)
    begun: float = field(default_factory=time.perf_counter)
    waited_s: float = 0.0

    def step(self, step: int, result: StepResult, batches: _Batches) -> None:
        """Take note of a step, numbered from 0."""
        self.losses.append(result.loss)
        is_due = (step + 1) % self.job.settings.log_every == 0 or step + 1 == self.job.steps or result.stop
        if not is_due or _rank() != 0:
            return
        pairs = self.job.settings.batch_size
        now = time.perf_counter()
        seconds = now - self.begun
        line = {
            "step": step + 1,
            "epoch": round((step + 1) * pairs / self.job.order.epoch_length, 4),
            "loss": math.fsum(self.losses) / len(self.losses),
            "lr": result.lr,
            "grad_norm": result.grad_norm,
            "samples_per_s": len(self.losses) * pairs / seconds,
            "data_wait": (batches.waited_s - self.waited_s) / seconds,
        }
        self.job.channel.log.remote(line)
        task = self.job.settings.task
        TRAIN_PAIRS.record(len(self.losses) * pairs, task=task)
        TRAIN_WAIT_SECONDS.record(batches.waited_s - self.waited_s, task=task)
        self.losses, self.begun, self.waited_s = [], now, batches.waited_s


def _not_finite(result: StepResult, step: int, checkpoints: Checkpoints) -> str:
    kept = f"the checkpoint of step {found.step} is kept" if (found := checkpoints.newest()) else "nothing was saved"
    return (
        f"step {step + 1}: the loss is {result.loss} and the gradient's norm {result.grad_norm}, so training stopped; "
        f"{kept}: use a lower peak_lr, more warmup_steps or precision float32 under another run name"
    )


def save(trainer: Trainer, checkpoints: Checkpoints, step: int) -> None:
    """Write a checkpoint of what was trained in `step` steps. All workers have to call it, and all refuse if one does.

    Raises:
        Refused: there is no room for it.
        Superseded: another process works on the run now.
    """
    weights: Tensors = {}
    moments: Tensors = {}
    for name, weight in trainer.trained.items():
        # One at a time, so that a sharded model is never whole on every GPU.
        _keep(weights, name, weight)
        for moment in MOMENTS:
            _keep(moments, f"{name}/{moment}", trainer.optimizer.state[weight][moment])
    together(lambda: checkpoints.save(step, weights, moments) if _rank() == 0 else None)


def restore(trainer: Trainer, checkpoints: Checkpoints) -> int:
    """Put weights and moments of the newest checkpoint in place; returns its step, 0 when there is none.

    Raises:
        Refused: it is of another model or another kind of training.
    """
    found = _from_first(checkpoints.newest)
    if found is None:
        return 0
    weights, moments = checkpoints.load(found) if _rank() == 0 else ({}, {})
    together(lambda: _check_fits(trainer, found.name, weights) if _rank() == 0 else None)
    for name, weight in trainer.trained.items():
        _receive(weight, weights.get(name))
        state = trainer.optimizer.state[weight]
        state["step"].fill_(found.step)
        for moment in MOMENTS:
            _receive(state[moment], moments.get(f"{name}/{moment}"))
    return found.step


def _check_fits(trainer: Trainer, name: str, weights: Tensors) -> None:
    trained = {name: tuple(weight.shape) for name, weight in trainer.trained.items()}
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    differing = sorted(key for key in trained.keys() | found.keys() if trained.get(key) != found.get(key))
    if differing:
        raise Refused(
            f"{name} is of another model: {len(differing)} weights differ, such as {differing[0]} "
            f"({found.get(differing[0], 'missing')} there, {trained.get(differing[0], 'missing')} here); "
            "use the model it was begun with, or another run name"
        )


def _keep(tensors: Tensors, name: str, tensor: torch.Tensor) -> None:
    tensor = whole(tensor)
    if _rank() == 0:
        tensors[name] = tensor.cpu().contiguous()


@torch.no_grad()
def _receive(target: torch.Tensor, source: torch.Tensor | None) -> None:
    """Fill a tensor with what the first worker has."""
    local = target.to_local() if isinstance(target, DTensor) else target
    shape, dtype, device = target.shape, target.dtype, local.device
    value = torch.empty(shape, dtype=dtype, device=device) if source is None else source.to(device, dtype)
    if _workers() > 1:
        dist.broadcast(value, 0)
    if isinstance(target, DTensor):
        value = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(value)


def _export(job: Job, trainer: Trainer) -> None:
    """Write the trained model, or its adapter, to `<run>/model`."""
    task = trainer.task
    named = trainer.trained if task.adapted is not None else task.model.state_dict()
    weights: Tensors = {}
    for name, weight in named.items():
        _keep(weights, name, weight)
    if _rank() != 0:
        return
    if task.adapted is None and job.settings.precision != "float32":
        # Half the bytes; float32 was for adding small steps up.
        weights = {name: w.bfloat16() if w.is_floating_point() else w for name, w in weights.items()}
    with tempfile.TemporaryDirectory() as folder:
        export(task, weights, job.folder, Path(folder))
        job.claim.check()
        job.storage.put_folder(Path(folder), join(job.uri, "model"))
        ray.get(job.channel.exported.remote(hash_files(Path(folder))))


def together(call: Callable[[], T]) -> T:
    """Call it on every worker; where one refuses, all do, for the same reason."""
    result: Any = None
    problem: Exception | None = None
    try:
        result = call()
    except (Refused, Superseded) as error:
        problem = error
    problems = [problem] * _workers()
    if _workers() > 1:
        dist.all_gather_object(problems, problem)
    if first := next(filter(None, problems), None):
        raise first
    return result  # type: ignore[no-any-return]


def _from_first(call: Callable[[], T]) -> T:
    """Return the call's result on the first worker."""
    values = [call() if _rank() == 0 else None]
    if _workers() > 1:
        dist.broadcast_object_list(values, 0)
    return values[0]  # type: ignore[return-value]


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _workers() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
