"""The thread of Ray Train: the workers of a run, from their start to the error that ended them."""

from __future__ import annotations

import tempfile
import threading

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig

from lake.errors import Refused
from training.settings import TrainingSettings
from training.worker import Job, work

# Dead workers are replaced this many times; then the run ends, and the same command resumes it.
_FAILURES = 3


class TrainerThread:
    """Ray Train in a thread of its own, so that the driver can look around."""

    def __init__(self, job: Job, gpus: int) -> None:
        settings = job.settings
        resources = {"GPU": 1.0, "CPU": 0.5} if gpus else {"CPU": _cpus_each(settings)}
        # What Ray Train would keep there (it insists on a place) are checkpoints; ours go to the lake by
        # `training.checkpoint`, which waits for a store that is away where Ray Train ends the run.
        self._folder = tempfile.TemporaryDirectory()
        self._trainer = TorchTrainer(
            work,
            # By reference: the controller, which looks at this, need not import what the workers do.
            train_loop_config={"job": ray.put(job)},
            scaling_config=ScalingConfig(
                num_workers=settings.workers, use_gpu=gpus > 0, resources_per_worker=resources
            ),
            run_config=RunConfig(
                name="train",
                storage_path=self._folder.name,
                failure_config=FailureConfig(max_failures=_FAILURES),
                logging_config=LoggingConfig(log_level="CRITICAL"),
            ),
        )
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fit, name="ray train", daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None) -> bool:
        """Wait up to N seconds; return whether it has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def raise_error(self) -> None:
        """Raise what ended the workers, when it was an error."""
        if self._error is not None:
            raise _cause(self._error)

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:
            self._error = error
        finally:
            self._folder.cleanup()


def refuse_too_few(settings: TrainingSettings) -> int:
    """GPUs that the workers use: none, or one each. Raises Refused where the cluster has too few."""
    resources = ray.cluster_resources()
    gpus, least = int(resources.get("GPU", 0)), settings.worker_range[0]
    if settings.device == "cpu" or (settings.device == "auto" and not gpus):
        return 0
    if gpus < least:
        raise Refused(f"{least} workers need a GPU each and the cluster has {gpus}: use fewer workers, or device cpu")
    return gpus


def _cpus_each(settings: TrainingSettings) -> float:
    # On a machine with fewer cores than workers they share them; a pool that grows must not.
    if not isinstance(settings.workers, int):
        return 1.0
    return min(1.0, float(ray.cluster_resources().get("CPU", 1.0)) / settings.workers)


def _cause(error: BaseException) -> BaseException:
    """Unwrap a worker's error from Ray Train's."""
    failures = getattr(error, "worker_failures", None)
    if not failures:
        return error
    rank, failure = min(failures.items())
    line = str(failure).strip().splitlines()[-1] if str(failure).strip() else type(failure).__name__
    if "out of memory" in str(failure):
        return Refused(
            f"the model does not fit on worker {rank} ({line}): use a smaller micro_batch_size, "
            "activation_checkpointing, strategy fsdp2 on more GPUs, or method lora"
        )
    return RuntimeError(f"worker {rank} failed {_FAILURES + 1} times, at last with: {line}")
