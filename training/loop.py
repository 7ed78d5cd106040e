"""A training step: read `Trainer.step`, it is all there is to it. Knows torch and no Ray.

Gradients are means over the pairs of a step. Every worker computes some of its micro-batches, and DDP or FSDP2 average
over workers; so a step is the same, to rounding, for any number of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from training.settings import TrainingSettings

Forward = Callable[..., Any]

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of each weight, besides the number of steps."""


class Task(Protocol):
    """A model in training and its objective."""

    model: nn.Module
    """Parameters that require a gradient are trained. Others are not, and `outside` not even moved or sharded."""
    trained_as: dict[str, Any]
    """How the model is asked, for `models.folders.TRAINED_AS`."""
    outside: frozenset[nn.Parameter]
    adapted: Any | None
    """PEFT's view of the model where an adapter is trained."""

    def loss(self, forward: Forward, batch: dict[str, Any]) -> torch.Tensor:
        """Mean loss over the pairs of a micro-batch, a scalar with a gradient; `forward` calls the model."""
        ...


@dataclass(frozen=True)
class StepResult:
    """Result of a step, the same on every worker. Nothing was changed when `is_finite` is false."""

    loss: float
    grad_norm: float
    lr: float
    stop: bool
    """True if a worker requests a stop after this step."""

    @property
    def is_finite(self) -> bool:
        """Return whether loss and gradient are finite."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def learning_rate(step: int, steps: int, settings: TrainingSettings) -> float:
    """Of a step: a linear warm-up to the peak, then half a cosine down to zero after the last step."""
    # A few labeled pairs make a few steps: a warm-up made for thousands would be all of the training.
    warmup = min(settings.warmup_steps, steps // 5)
    if step < warmup:
        return settings.peak_lr * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    return settings.peak_lr * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


class Trainer:
    """A task's model, wrapped for its workers, and its optimizer.

    `settings.precision` is float32, mixed or bfloat16 here. The model comes in the dtype of its weights.
    """

    def __init__(self, task: Task, settings: TrainingSettings, steps: int, device: torch.device) -> None:
        self.task, self.settings, self.steps, self.device = task, settings, steps, device
        self.workers = dist.get_world_size() if dist.is_initialized() else 1
        task.model.train()
        if settings.activation_checkpointing:
            # Not re-entrant: with frozen embeddings nothing that enters a layer has a gradient.
            task.model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        self.model = self._wrapped()
        self.trained = {name: weight for name, weight in task.model.named_parameters() if weight.requires_grad}
        self.optimizer = self._new_optimizer()

    def step(
        self, step: int, micro_batches: Iterable[tuple[int, dict[str, Any]]], stop_requested: bool = False
    ) -> StepResult:
        """One update from this worker's micro-batches; the number of each counts over the training, -1 for none."""
        rounds = math.ceil(self.settings.micro_batches / self.workers)
        # Shared by all workers: the loss, and whether one requests a stop.
        total = torch.tensor([0.0, stop_requested], device=self.device)
        for round_, (number, batch) in enumerate(micro_batches):
            # What dropout draws depends on the micro-batch alone: not on who computes it, nor on what came before.
            torch.manual_seed((self.settings.seed << 31) + max(number, 0))
            with self._synchronized(round_ == rounds - 1), self._autocast():
                loss = self.task.loss(self.model, batch)
                loss = loss * (number >= 0) / self.settings.micro_batches
                torch.autograd.backward(loss * self.workers)
            total[0] += loss.detach().float()
        if self.workers > 1:
            dist.all_reduce(total)
        norm = nn.utils.clip_grad_norm_(self.trained.values(), self.settings.grad_clip)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        loss_, stop = total.tolist()
        result = StepResult(loss_, norm.item(), learning_rate(step, self.steps, self.settings), stop > 0)
        if result.is_finite:
            for group in self.optimizer.param_groups:
                group["lr"] = result.lr
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return result

    def _wrapped(self) -> nn.Module:
        if self.settings.strategy == "fsdp2":
            return self._sharded()
        model = self.task.model.to(self.device)
        if self.workers == 1:
            return model
        return DistributedDataParallel(
            model,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            # They are constants of frozen parts.
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )

    def _sharded(self) -> nn.Module:
        """Each layer, then what is left, as a unit of FSDP2: whole while it computes, else a shard on each worker."""
        mesh = init_device_mesh(self.device.type, (self.workers,))
        policy = MixedPrecisionPolicy()
        if self.settings.precision == "mixed":
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        model = self.task.model
        layers = set(getattr(model, "_no_split_modules", None) or ())
        ignored = set(self.task.outside)
        for module in list(model.modules()):
            if type(module).__name__ in layers and not ignored & set(module.parameters()):
                fully_shard(module, mesh=mesh, mp_policy=policy)
        for weight in ignored:
            weight.data = weight.data.to(self.device)
        fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=ignored)
        return model

    def _new_optimizer(self) -> torch.optim.AdamW:
        matrices = [weight for weight in self.trained.values() if weight.ndim > 1]
        others = [weight for weight in self.trained.values() if weight.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": self.settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        fused = self.device.type == "cuda"
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=fused)
        for weight in self.trained.values():
            # As AdamW would at its first step: a checkpoint is read into them, and weights without a gradient have one.
            optimizer.state[weight] = {
                "step": torch.zeros((), device=self.device if fused else "cpu"),
                **{moment: torch.zeros_like(weight) for moment in MOMENTS},
            }
        return optimizer

    @contextmanager
    def _synchronized(self, is_last: bool) -> Iterator[None]:
        """Exchange gradients after the last micro-batch of a step only."""
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(is_last)
            yield
        elif isinstance(self.model, DistributedDataParallel) and not is_last:
            with self.model.no_sync():
                yield
        else:
            yield

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision != "float32")


def whole(weight: torch.Tensor) -> torch.Tensor:
    """A weight or a state of the optimizer, without its shards. All workers have to call it."""
    weight = weight.detach()
    return weight.full_tensor() if isinstance(weight, DTensor) else weight
