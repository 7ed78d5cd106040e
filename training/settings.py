"""What a training is: every setting that decides the weights, and the few that only decide how they are computed."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lake.errors import Refused
from lake.ids import content_id
from training.selection import BY_PEOPLE, SelectionSettings

_HOW = frozenset({"workers", "device", "strategy", "activation_checkpointing", "checkpoint_every", "log_every"})
"""Settings that change the weights by rounding at most, so that a run may be resumed with others."""


class Source(SelectionSettings):
    """Some of the triples, and how often an epoch shows them."""

    per_dataset: int | None = Field(None, ge=1, description="the likeliest so many of a data set; None: all")
    factor: float = Field(
        1.0, gt=0, le=1000, description="times an epoch shows each triple; 0.5: another random half of them every epoch"
    )


class TrainingSettings(BaseModel):
    """Settings that both kinds of training have. Raises Refused where a value is impossible."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    task: ClassVar[Literal["dynamics", "world"]]

    model: str = Field(
        "builtin", description="what to start from: builtin, hf:<folder>, hf:<owner>/<repository> or s3://<folder>"
    )
    revision: str | None = Field(None, description="commit, tag or branch of a repository; None: its main branch")
    image_size: int | None = Field(None, ge=8, le=4096, description="pixels; None: the model's own")

    sources: tuple[Source, ...] = Field(
        (Source(),), min_length=1, description="which triples; default: every one of the split train"
    )
    version: int | None = Field(None, ge=0, description="version of the table triples; None: the newest")
    epochs: float | None = Field(None, gt=0, description="passes over the sources; exactly one of epochs and steps")
    steps: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0, lt=2**32)

    method: Literal["lora", "full"] = "lora"
    lora_rank: int = Field(16, ge=1)
    lora_alpha: float = Field(32, gt=0)
    lora_dropout: float = Field(0.05, ge=0, lt=1)

    batch_size: int = Field(64, ge=1, description="pairs of a step, over all workers")
    micro_batch_size: int = Field(16, ge=1, description="pairs a worker computes at once; divides batch_size")
    peak_lr: float = Field(2e-4, gt=0, lt=10)
    warmup_steps: int = Field(100, ge=0, description="steps up to the peak; at most a fifth of all")
    weight_decay: float = Field(0.01, ge=0, description="of matrices; norms and biases have none")
    grad_clip: float = Field(1.0, gt=0, description="largest norm of a step's gradient")
    precision: Literal["auto", "float32", "mixed", "bfloat16"] = Field(
        "auto",
        description="mixed: float32 weights, bfloat16 arithmetic; bfloat16: weights and optimizer too; auto: bfloat16 "
        "for LoRA (adapters stay float32) and mixed for full on a GPU, float32 on a CPU",
    )

    workers: int | tuple[int, int] = Field(1, description="processes, one a GPU; (least, most): as many as there are")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: GPUs where the cluster has any")
    strategy: Literal["ddp", "fsdp2"] = Field("ddp", description="weights whole on every worker, or sharded over them")
    activation_checkpointing: bool = Field(False, description="less memory for a third more arithmetic")
    checkpoint_every: int = Field(500, ge=1, description="steps")
    log_every: int = Field(10, ge=1, description="steps")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of --epochs and --steps")
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of micro_batch_size {self.micro_batch_size}")
        least, most = self.worker_range
        if not 1 <= least <= most:
            raise ValueError(f"workers {self.workers} are not a number or (least, most), both at least 1")
        if most > self.micro_batches:
            raise ValueError(
                f"{most} workers share {self.micro_batches} micro-batches a step; use a larger batch_size, a smaller "
                "micro_batch_size or fewer workers"
            )
        lora_only = {"lora_rank", "lora_alpha", "lora_dropout"} & self.model_fields_set
        if self.method == "full" and lora_only:
            raise ValueError(f"{min(lora_only)} does nothing with method full")
        return self

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step, over all workers."""
        return self.batch_size // self.micro_batch_size

    @property
    def worker_range(self) -> tuple[int, int]:
        """The least and the most workers."""
        return (self.workers, self.workers) if isinstance(self.workers, int) else self.workers

    def identity(self) -> dict[str, Any]:
        """Everything that decides the weights: what a resumed run must have in common with the one it goes on from."""
        return {"task": self.task} | self.model_dump(mode="json", exclude=set(_HOW))

    def default_run(self) -> str:
        """The name of a run that is given none: the same settings have the same."""
        return f"{self.task}-{content_id(self.identity())[:8]}"

    @classmethod
    def checked(cls, values: dict[str, Any]) -> Self:
        """The settings of these values. Raises Refused, with one line, where they are impossible."""
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"]).replace("_", "-")
            message = first["msg"].removeprefix("Value error, ")
            if first["type"] == "extra_forbidden" and first["loc"][0] == "sources":
                name, message = "source", f"there is no key {first['loc'][-1]!r}, only {', '.join(Source.model_fields)}"
            raise Refused(f"--{name}: {message} (given: {first['input']!r})" if name else message) from None


class WorldTraining(TrainingSettings):
    """A world model: cross-entropy on the image tokens of next_obs."""

    task = "world"

    floor: float | None = Field(
        None,
        ge=0,
        le=1,
        description="weigh tokens by how much their place changes, the least weight being this share of the mean; "
        "None: all alike",
    )


class DynamicsTraining(TrainingSettings):
    """A dynamics model: cross-entropy on the tokens of the action."""

    task = "dynamics"

    sources: tuple[Source, ...] = Field(
        (Source(where=BY_PEOPLE),),
        min_length=1,
        description="which triples; default: every one of the split train that people labeled",
    )
    prompt: str | None = Field(None, min_length=1, description="what the model is asked; None: as labeling asks it")
    pair_layout: Literal["auto", "images", "video"] = Field(
        "auto", description="two images, or one video of two frames; auto: video where the model takes it"
    )
