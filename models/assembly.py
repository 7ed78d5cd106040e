"""Weights, adapter and tokenizer put together into a dynamics model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from lake.errors import ModelRefused
from models.huggingface import HuggingFaceDynamics
from models.inputs import PairInputs, PairLayout, QwenInputs, StockInputs
from models.loading import QWEN_FAMILY, ModelSettings
from models.qwen import CHUNKED_ATTENTION

# Whatever is wrong with a folder, transformers and PEFT say with exceptions of every class: all mean a refusal here.


def assemble(
    settings: ModelSettings, folder: Path, adapter: Path | None, device: str, *, answers_few: bool
) -> HuggingFaceDynamics:
    """The model in `folder`, by settings with nothing left open. Raises ModelRefused where it cannot be used."""
    dtype = torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32
    assert settings.image_size is not None
    disable_progress_bar()
    model = _load_weights(folder, dtype)
    if model.config.model_type in QWEN_FAMILY:
        model.set_attn_implementation({"vision_config": CHUNKED_ATTENTION})
    if adapter is not None:
        model = _adapt(model, adapter, dtype)
    model = _to_device(model, device).eval().requires_grad_(False)
    dynamics = HuggingFaceDynamics(
        model,
        _inputs(settings, folder, model.config),
        image_size=settings.image_size,
        batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
        answers_few=answers_few,
    )
    _check_sees_both(dynamics, folder)
    return dynamics


def _load_weights(folder: Path, dtype: torch.dtype) -> Any:
    try:
        model, report = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:
        raise ModelRefused(f"{folder} does not load ({_line(error)}); check it, or download it again") from error
    missing = sorted(report["missing_keys"])
    if missing:
        # transformers would fill them with random numbers and go on.
        raise ModelRefused(f"{folder} lacks {len(missing)} weights ({missing[0]}, ...); download it again")
    return model


def _adapt(model: Any, adapter: Path, dtype: torch.dtype) -> Any:
    """The model with the PEFT adapter: merged in float32; in bfloat16, where merging would round it away, beside."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    try:
        adapted = PeftModel.from_pretrained(model, adapter, is_trainable=False)
    except Exception as error:
        raise ModelRefused(
            f"adapter {adapter} does not fit this model ({_line(error)}); use it with the model it was trained on"
        ) from error
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        unused = set(file.keys()) ^ set(get_peft_model_state_dict(adapted))
    if unused:
        raise ModelRefused(
            f"adapter {adapter} and this model disagree on {len(unused)} weights ({min(unused)}, ...); "
            "use it with the model it was trained on"
        )
    return adapted.merge_and_unload() if dtype == torch.float32 else adapted.get_base_model()


def _to_device(model: Any, device: str) -> Any:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ModelRefused(
            f"the model does not go onto device {device} ({_line(error)}); use cpu, a larger GPU or a smaller model"
        ) from error


def _inputs(settings: ModelSettings, folder: Path, config: Any) -> PairInputs:
    assert settings.image_size is not None
    assert settings.prompt is not None
    if config.model_type not in QWEN_FAMILY:
        return StockInputs(folder, settings.prompt)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ModelRefused(f"the tokenizer in {folder} does not load ({_line(error)}); download it again") from error
    layout: PairLayout = "video" if settings.pair_layout == "video" else "images"
    return QwenInputs(folder, config, tokenizer, settings.image_size, layout, settings.prompt)


def _check_sees_both(dynamics: HuggingFaceDynamics, folder: Path) -> None:
    """Raise ModelRefused where the scores do not depend on both images, or cannot be computed at all."""
    size = dynamics.image_size
    frames = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    try:
        scores = dynamics.score(frames[[0, 0, 1]], frames[[0, 1, 0]], ["it moves"] * 3)
    except torch.OutOfMemoryError as error:
        raise ModelRefused(
            f"the GPU has too little memory for {folder} and a batch of pairs; let it see fewer at once (--batch-size)"
        ) from error
    except Exception as error:
        raise ModelRefused(f"{folder} does not take two images ({_line(error)}); use a model that does") from error
    if not np.isfinite(scores).all() or len(set(scores.tolist())) < 3:
        raise ModelRefused(f"{folder} does not see both images (scores {scores.tolist()}); use another model")


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]
