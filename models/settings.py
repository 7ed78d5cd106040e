"""Settings of dynamics models and world models: which one, and how it is used."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lake.settings import Settings

DEFAULT_PROMPT = (
    "The first image was taken shortly before the second. In one short phrase, "
    "name the action that leads from the first image to the second."
)

Dtype = Literal["float32", "bfloat16"]

_REVISION = "Commit, tag or branch of a repository. Default: its main branch."
_ADAPTER = "LoRA adapter: a folder, <owner>/<repository>[@<revision>] or s3://<folder>."
_DTYPE = "Precision; auto: bfloat16 on GPU, float32 on CPU."
PAIR_LAYOUT = (
    "How the model sees a pair: images (two), video (one, of two frames), or another layout of its family; auto: as it "
    "was trained, else video where it takes one."
)
_IMAGE_SIZE = "Side of the images that the model sees in pixels. Default: as it was trained."


class ModelSettings(Settings):
    """Which dynamics model, and how it is asked."""

    name: str = Field(
        "builtin",
        description="Dynamics model: builtin, hf:<folder>, hf:<owner>/<repository> or s3://<folder>. builtin knows the "
        "sample world of `worldlake demo` only.",
    )
    revision: str | None = Field(None, pattern=r"\S", description=_REVISION)
    adapter: str | None = Field(None, pattern=r"\S", description=_ADAPTER)
    prompt: str | None = Field(
        None, min_length=1, description="Prompt. Default: the prompt the model was trained with, else a generic one."
    )
    max_new_tokens: int = Field(
        32, ge=2, le=1024, description="Maximum length of an action in tokens, the end token included."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description=_DTYPE)
    image_size: int | None = Field(None, ge=8, le=4096, description=_IMAGE_SIZE)
    batch_size: int = Field(64, ge=1, le=4096, description="Pairs per forward pass.")
    pair_layout: str = Field("auto", pattern=r"\S", description=PAIR_LAYOUT)


class TokenSampling(Settings):
    """How image tokens are drawn from the model's distribution over the codebook."""

    temperature: float = Field(1.0, ge=0, le=10, description="Sampling temperature; 0 is greedy.")
    top_k: int | None = Field(None, ge=1, description="Sample from the K most likely tokens only. Default: all.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling (top-p).")


class WorldSettings(Settings):
    """Which world model, and how it draws."""

    name: str = Field(
        "builtin", description="World model: builtin, hf:<folder>, hf:<owner>/<repository> or s3://<folder>."
    )
    revision: str | None = Field(None, pattern=r"\S", description=_REVISION)
    adapter: str | None = Field(None, pattern=r"\S", description=_ADAPTER)
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description=_DTYPE)
    image_size: int | None = Field(None, ge=8, le=4096, description=_IMAGE_SIZE)
    batch_size: int = Field(16, ge=1, le=4096, description="Observations per forward pass, each with its candidates.")
    sampling: TokenSampling = Field(TokenSampling(), description="How image tokens are sampled.")
