"""Settings of a training: those that decide the weights, and a few that only decide how they are computed."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import yaml
from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from lake.errors import Contradiction, Refused
from lake.ids import content_id
from lake.settings import NESTED, Settings
from models.settings import PAIR_LAYOUT
from training.selection import BY_PEOPLE, SelectionSettings

_HOW = frozenset({"workers", "device", "strategy", "activation_checkpointing", "checkpoint_every", "log_every"})
"""Settings that change the weights by rounding at most, so that a run may be resumed with others."""


class Source(SelectionSettings):
    """Some of the triples, and how often an epoch shows them."""

    per_dataset: int | None = Field(
        None, ge=1, description="Use the N most likely triples of each data set. Default: all."
    )
    factor: float = Field(
        1.0,
        gt=0,
        le=1000,
        description="Times that an epoch shows each triple; 0.5 shows another random half every epoch.",
    )


_SOURCE = (
    f"as key: value pairs in braces; repeat to mix sources. Keys: {', '.join(Source.model_fields)}. "
    "Example: '{datasets: [magicbrush], factor: 15}'."
)


_WORKERS: list[Any] = [{"type": "integer"}, {"type": "string", "format": "least-most"}]
"""Types of `workers`, as JSON schemas."""


class TrainingSettings(Settings):
    """Settings that both kinds of training have. Raises Refused where a value is impossible."""

    task: ClassVar[Literal["dynamics", "world"]]

    model: str = Field(
        "builtin", description="Model to start from: builtin, hf:<folder>, hf:<owner>/<repository> or s3://<folder>."
    )
    revision: str | None = Field(None, description="Commit, tag or branch of a repository. Default: its main branch.")
    image_size: int | None = Field(
        None, ge=8, le=4096, description="Side of the images in pixels. Default: the model's."
    )

    sources: tuple[Source, ...] = Field(
        (Source(),), min_length=1, description=f"Triples to train on, {_SOURCE} Default: the whole split train."
    )
    triples_version: int | None = Field(None, ge=0, description="Version of the table triples. Default: the newest.")
    epochs: float | None = Field(
        None, gt=0, description="Passes over the sources. Give exactly one of epochs and steps."
    )
    steps: int | None = Field(None, ge=1, description="Optimizer steps. Give exactly one of epochs and steps.")
    seed: int = Field(0, ge=0, lt=2**32, description="Random seed.")

    method: Literal["lora", "full"] = Field("lora", description="Train a LoRA adapter, or all weights.")
    lora_rank: int = Field(16, ge=1, description="Rank of the LoRA matrices.")
    lora_alpha: float = Field(32, gt=0, description="LoRA scaling; updates are scaled by alpha / rank.")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="Dropout on the inputs of LoRA matrices.")

    batch_size: int = Field(64, ge=1, description="Pairs per step, over all workers.")
    micro_batch_size: int = Field(16, ge=1, description="Pairs that a worker computes at once; divides batch_size.")
    peak_lr: float = Field(2e-4, gt=0, lt=10, description="Peak learning rate.")
    warmup_steps: int = Field(100, ge=0, description="Warmup steps; at most a fifth of all steps count.")
    weight_decay: float = Field(0.01, ge=0, description="Weight decay of matrices; norms and biases have none.")
    grad_clip: float = Field(1.0, gt=0, description="Maximum norm of a step's gradient.")
    precision: Literal["auto", "float32", "mixed", "bfloat16"] = Field(
        "auto",
        description="mixed: float32 weights, bfloat16 arithmetic. bfloat16: weights and optimizer too. auto: bfloat16 "
        "for LoRA (adapters stay float32) and mixed for full on a GPU, float32 on a CPU.",
    )

    workers: int | tuple[int, int] = Field(
        1, description="Workers, one per GPU; 2-8 is elastic.", json_schema_extra={"anyOf": _WORKERS}
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where to train; auto: GPUs where the cluster has any."
    )
    strategy: Literal["ddp", "fsdp2"] = Field(
        "ddp", description="Weights whole on every worker (ddp), or sharded over them (fsdp2)."
    )
    activation_checkpointing: bool = Field(False, description="Use less memory for a third more arithmetic.")
    checkpoint_every: int = Field(500, ge=1, description="Steps between checkpoints.")
    log_every: int = Field(10, ge=1, description="Steps between log lines.")

    @field_validator("sources", mode="before")
    @classmethod
    def _parse_sources(cls, value: Any) -> Any:
        """Take sources as a command line has them: YAML in braces."""
        if not isinstance(value, list | tuple):
            return value
        try:
            return [Source.model_validate(_mapping(one)) if isinstance(one, str) else one for one in value]
        except Refused as error:  # which names a key of the source
            raise PydanticCustomError(NESTED, "{text}", {"text": str(error)}) from None

    @field_validator("workers", mode="before")
    @classmethod
    def _parse_workers(cls, value: Any) -> Any:
        """Take a range as a command line has it: 2-8."""
        if not isinstance(value, str):
            return value
        least, dash, most = value.partition("-")
        try:
            return (int(least), int(most)) if dash else int(least)
        except ValueError:
            raise ValueError("give a number, or two with a dash such as 2-8") from None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        # Not a ValueError: this runs after `Settings` has turned those into one line.
        if (self.epochs is None) == (self.steps is None):
            raise Contradiction("give exactly one of `epochs` and `steps`")
        if self.batch_size % self.micro_batch_size:
            raise Contradiction(
                f"`batch_size` {self.batch_size} is not a multiple of `micro_batch_size` {self.micro_batch_size}"
            )
        least, most = self.worker_range
        if not 1 <= least <= most:
            raise Contradiction(f"`workers` {least}-{most}: give a number, or the least and the most, both at least 1")
        if most > self.micro_batches:
            raise Contradiction(
                f"{most} workers share {self.micro_batches} micro-batches a step; use a larger `batch_size`, a smaller "
                "`micro_batch_size` or fewer `workers`"
            )
        lora_only = {"lora_rank", "lora_alpha", "lora_dropout"} & self.model_fields_set
        if self.method == "full" and lora_only:
            raise Contradiction(f"`{min(lora_only)}` does nothing with `method` full")
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
        """Everything that decides the weights: what a resumed run must have in common with its start."""
        return {"task": self.task} | self.model_dump(mode="json", exclude=set(_HOW))

    def default_run(self) -> str:
        """The name of a run that is given none: the same settings have the same."""
        return f"{self.task}-{content_id(self.identity())[:8]}"


def _mapping(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"this is not YAML ({str(error).splitlines()[0]}): write {{key: value, ...}}") from None
    if not isinstance(value, dict):
        raise ValueError("write {key: value, ...}")
    return value


class WorldTraining(TrainingSettings):
    """A world model: cross-entropy on the image tokens of next_obs."""

    task = "world"

    floor: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Weight tokens by how much their place changes; the least weight is this share of the mean. "
        "Default: all alike.",
    )


class DynamicsTraining(TrainingSettings):
    """A dynamics model: cross-entropy on the tokens of the action."""

    task = "dynamics"

    sources: tuple[Source, ...] = Field(
        (Source(where=BY_PEOPLE),),
        min_length=1,
        description=f"Triples to train on, {_SOURCE} Default: what people labeled of the split train.",
    )
    prompt: str | None = Field(None, min_length=1, description="Prompt. Default: the one that labeling uses.")
    pair_layout: str = Field("auto", pattern=r"\S", description=PAIR_LAYOUT)
