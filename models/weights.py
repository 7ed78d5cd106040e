"""Loading weights with transformers, and adapters with PEFT: the same for every family of either kind of model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lake.errors import ModelRefused, one_line
from models.folders import check_weights, read_json
from models.settings import Dtype

# torch, transformers and PEFT take seconds to import, so that only the functions that need them do.
# Whatever is wrong with a folder, they say with exceptions of every class: all mean a refusal here.

LANGUAGE_LAYERS = (
    r"(?!.*(?:vision|visual|vqmodel|connector|projector))"
    r".*\.(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
)
"""The linear layers of the language model's blocks, by the names that most families of transformers give them, and not
those of towers that see: the paper adapts the language model."""


def load_weights(model_class: Any, folder: Path, dtype: Dtype) -> Any:
    """Load a transformers model from its folder onto the CPU. Raises ModelRefused where that fails."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        model, report = model_class.from_pretrained(
            folder,
            dtype=torch.bfloat16 if dtype == "bfloat16" else torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:
        raise ModelRefused(
            f"{folder} does not load ({one_line(error, 200)}); check it, or download it again"
        ) from error
    if missing := sorted(report["missing_keys"]):
        # transformers would fill them with random numbers and continue.
        raise ModelRefused(f"{folder} lacks {len(missing)} weights ({missing[0]}, ...); download it again")
    return model


def load_tokenizer(folder: Path) -> Any:
    """Load the text tokenizer of a model folder. Raises ModelRefused where that fails."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ModelRefused(
            f"the tokenizer in {folder} does not load ({one_line(error, 200)}); download it again"
        ) from error


def to_device(model: Any, device: str) -> Any:
    """Move a model to a device, for inference. Raises ModelRefused where it does not fit."""
    try:
        return model.to(device).eval().requires_grad_(False)
    except (RuntimeError, AssertionError) as error:
        raise ModelRefused(
            f"the model does not fit onto device {device} ({one_line(error, 200)}); use cpu, a larger GPU or a smaller "
            "model"
        ) from error


def check_adapter(adapter: Path, config: dict[str, Any]) -> None:
    """Raise ModelRefused unless the folder holds a LoRA adapter, as safetensors, for the model of this config."""
    adapter_config = read_json(adapter / "adapter_config.json")
    if not adapter_config:
        raise ModelRefused(f"{adapter} has no adapter_config.json; name a folder written by PEFT's save_pretrained")
    kind = adapter_config.get("peft_type")
    if kind != "LORA":
        # Others read files that are not hashed, or fetch what they name: X-LoRA a repository and a pickle.
        raise ModelRefused(f"adapter {adapter} is of the kind {kind}, and only LORA is loaded; train a LoRA adapter")
    check_weights(adapter, "adapter_model.safetensors")
    mapping = adapter_config.get("auto_mapping") or {}
    trained_on = mapping.get("base_model_class")
    if trained_on is not None and trained_on not in config.get("architectures", [trained_on]):
        raise ModelRefused(
            f"adapter {adapter} was trained on {trained_on}, not on {config['architectures'][0]}; "
            "use it with the model that it was trained on"
        )


def apply_adapter(model: Any, adapter: Path, dtype: Dtype) -> Any:
    """Apply a LoRA adapter: merged in float32; in bfloat16, where merging would round it away, beside the weights.

    Raises ModelRefused where it does not fit the model in every weight.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    try:
        adapted = PeftModel.from_pretrained(model, adapter, is_trainable=False)
    except Exception as error:
        raise ModelRefused(
            f"adapter {adapter} does not fit this model ({one_line(error, 200)}); use it with its model"
        ) from error
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        unused = set(file.keys()) ^ set(get_peft_model_state_dict(adapted))
    if unused:
        raise ModelRefused(
            f"adapter {adapter} and this model disagree on {len(unused)} weights ({min(unused)}, ...); "
            "use it with the model it was trained on"
        )
    return adapted.merge_and_unload() if dtype == "float32" else adapted.get_base_model()
