"""Settings of dynamics models and world models: which one, and how it is used."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from models.errors import ModelRefused

DEFAULT_PROMPT = (
    "The first image was taken shortly before the second. In one short phrase, "
    "name the action that leads from the first image to the second."
)

Dtype = Literal["float32", "bfloat16"]
PairLayout = Literal["images", "video"]


class ModelSettings(BaseModel):
    """Which dynamics model, and how it is asked. Raises ModelRefused where a value is impossible."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    name: str = Field("builtin", description="builtin, hf:<folder>, hf:<owner>/<repository> or s3://<folder>")
    revision: str | None = Field(None, description="commit, tag or branch of a repository; None: its main branch")
    adapter: str | None = Field(
        None, description="LoRA adapter: a folder, <owner>/<repository>[@<revision>] or s3://<folder>"
    )
    prompt: str | None = Field(None, min_length=1, description="None: as the model was trained, else DEFAULT_PROMPT")
    max_new_tokens: int = Field(32, ge=2, le=1024, description="tokens of an action, the end token included")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on GPU, float32 on CPU")
    image_size: int | None = Field(None, ge=8, le=4096, description="pixels; None: as it was trained")
    batch_size: int = Field(64, ge=1, le=4096, description="pairs of a forward pass")
    pair_layout: Literal["auto", "images", "video"] = Field(
        "auto", description="two images, or one video of two frames; auto: as it was trained, else video where it can"
    )

    @model_validator(mode="wrap")
    @classmethod
    def _refuse(cls, values: Any, handler: ModelWrapValidatorHandler[ModelSettings]) -> ModelSettings:
        try:
            return handler(values)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "model settings"
            raise ModelRefused(f"model setting {field}: {first['msg']} (given: {first['input']!r})") from error


class TokenSampling(BaseModel):
    """How image tokens are drawn from the model's distribution over the codebook."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(1.0, ge=0, le=10, description="below 0.001: always the likeliest token")
    top_k: int | None = Field(None, ge=1, description="draw from the k likeliest tokens only")
    top_p: float = Field(1.0, gt=0, le=1, description="draw from the likeliest tokens that together have this share")


class WorldSettings(BaseModel):
    """Which world model, and how it draws."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("builtin", description="builtin, hf:<folder>, hf:<owner>/<repository> or s3://<folder>")
    revision: str | None = Field(None, description="commit, tag or branch of a repository; None: its main branch")
    adapter: str | None = Field(
        None, description="LoRA adapter: a folder, <owner>/<repository>[@<revision>] or s3://<folder>"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on GPU, float32 on CPU")
    image_size: int | None = Field(None, ge=8, le=4096, description="pixels; None: as it was trained")
    batch_size: int = Field(16, ge=1, le=4096, description="observations, each with all its candidates")
    sampling: TokenSampling = TokenSampling()
