"""Names, refusals and identities of models, on saved folders."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

from lake.errors import ModelRefused, Refused
from models.dynamics.qwen_vl_inputs import QwenInputs
from models.folders import TRAINED_AS
from models.huggingface import HuggingFaceDynamics
from models.loading import load_dynamics, resolve
from models.protocols import Images
from models.settings import DEFAULT_PROMPT, ModelSettings
from tests.models.tiny import save_tiny


@pytest.fixture
def folder(qwen: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(qwen, tmp_path / "copy"))


def settings(folder: Path, **changes: object) -> ModelSettings:
    return ModelSettings.model_validate({"name": f"hf:{folder}", "max_new_tokens": 8, "batch_size": 4} | changes)


def save_adapter(base: Path, folder: Path, **config: Any) -> Path:
    model = AutoModelForImageTextToText.from_pretrained(base)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], r=2, **config))
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(folder)
    return folder


def test_the_identity_is_of_all_that_decides_the_answer_and_of_nothing_else(folder: Path, qwen: Path) -> None:
    identity = resolve(settings(folder)).identity
    assert resolve(settings(qwen, batch_size=1)).identity == identity
    weights = (folder / "model.safetensors").read_bytes()
    assert identity["file:model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert {"file:config.json", "file:tokenizer.json", "file:chat_template.jinja"} < identity.keys()
    changes = [{"prompt": "What happened?"}, {"max_new_tokens": 9}, {"dtype": "bfloat16"}]
    changes += [{"image_size": 64}, {"pair_layout": "images"}, {"adapter": str(save_adapter(qwen, folder / "lora"))}]
    changed = [resolve(settings(folder, **change)).identity for change in changes]
    (folder / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    changed.append(resolve(settings(folder)).identity)
    assert len({json.dumps(i, sort_keys=True) for i in [identity, *changed]}) == 1 + len(changed)


def test_resolving_reads_no_weights_and_leaves_nothing_open(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no weights at all")
    resolved = resolve(settings(folder), "cuda")
    assert resolved.folder == folder
    assert resolved.image_size == resolved.settings.image_size == 32
    assert (resolved.settings.dtype, resolved.settings.pair_layout) == ("bfloat16", "video")
    assert resolve(settings(folder), "cpu").identity["dtype"] == "float32"
    with pytest.raises(ModelRefused, match="does not load"):
        load_dynamics(settings(folder), "cpu")


def no_folder(folder: Path) -> dict[str, object]:
    shutil.rmtree(folder)
    return {}


def only_pickles(folder: Path) -> dict[str, object]:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return {}


def no_weights(folder: Path) -> dict[str, object]:
    (folder / "model.safetensors").unlink()
    return {}


def shard_missing(folder: Path) -> dict[str, object]:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return {}


def weight_missing(folder: Path) -> dict[str, object]:
    weights = load_file(folder / "model.safetensors")
    del weights[max(name for name in weights if name.endswith("up_proj.weight"))]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return {}


def text_only(folder: Path) -> dict[str, object]:
    shutil.rmtree(folder)
    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(config).save_pretrained(folder)
    return {}


def own_code(folder: Path) -> dict[str, object]:
    config = {"model_type": "my_vlm", "auto_map": {"AutoConfig": "code.MyConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('ran')")
    return {}


def no_tokenizer(folder: Path) -> dict[str, object]:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    return {}


def no_place_for_a_video(folder: Path) -> dict[str, object]:
    (folder / "chat_template.jinja").write_text("{{ messages[0].content[-1].text }}")
    return {}


def not_json(folder: Path) -> dict[str, object]:
    (folder / "config.json").write_text("{")
    return {}


def no_object(folder: Path) -> dict[str, object]:
    (folder / "config.json").write_text("[]")
    return {}


def wrong_object(folder: Path) -> dict[str, object]:
    (folder / "config.json").write_text('{"model_type": "qwen2_vl", "vision_config": 3}')
    return {}


def adapter_of_another_model(folder: Path) -> dict[str, object]:
    return {"adapter": str(save_adapter(save_tiny("idefics3", folder / "other"), folder / "lora"))}


def adapter_of_another_size(folder: Path) -> dict[str, object]:
    other = save_tiny("qwen2_vl", folder / "other", hidden_size=64)
    return {"adapter": str(save_adapter(other, folder / "lora"))}


def adapter_for_other_layers(folder: Path) -> dict[str, object]:
    other = save_tiny("qwen2_vl", folder / "other", num_hidden_layers=3)
    return {"adapter": str(save_adapter(other, folder / "lora"))}


def adapter_of_adapters(folder: Path) -> dict[str, object]:
    """X-LoRA, which asks a hub for the adapters that it names and unpickles what it finds beside its config."""
    adapter = save_adapter(folder, folder / "lora")
    config = {"peft_type": "XLORA", "task_type": "CAUSAL_LM", "hidden_size": 32, "adapters": {"0": "someone/private"}}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (adapter / "xlora_classifier.bin").write_bytes(b"a pickle")
    return {"adapter": str(adapter)}


def adapter_of_prompts(folder: Path) -> dict[str, object]:
    adapter = save_adapter(folder, folder / "lora")
    config = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 2}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    return {"adapter": str(adapter)}


def adapter_without_a_kind(folder: Path) -> dict[str, object]:
    adapter = save_adapter(folder, folder / "lora")
    (adapter / "adapter_config.json").write_text(json.dumps({"task_type": "CAUSAL_LM"}))
    return {"adapter": str(adapter)}


def adapter_pickled(folder: Path) -> dict[str, object]:
    adapter = save_adapter(folder, folder / "lora")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    return {"adapter": str(adapter)}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda _: {"name": "gpt5"}, "unknown model 'gpt5'; use builtin, hf:"),
        (lambda _: {"name": "hf:"}, "unknown model 'hf:'; use"),
        (lambda _: {"name": "hf:no such folder"}, "no folder 'no such folder'; name an existing"),
        (no_folder, "no folder '.*copy'; name an existing folder"),
        (lambda _: {"revision": "main"}, "local folder .*leave the revision out"),
        (only_pickles, "only pytorch_model.bin, which can run code.*save_pretrained"),
        (no_weights, "no weights; save the model"),
        (shard_missing, "lacks model-00002-of-00002.safetensors.*download it again"),
        (weight_missing, "lacks 1 weights .*download it again"),
        (text_only, "llama is not an image-text-to-text model.*use one that takes two images"),
        (own_code, "my_vlm is not an image.*never run; use one"),
        (no_tokenizer, "tokenizer .* has no video token .*download it again"),
        (no_place_for_a_video, "leaves 0 places for 1 video.*try pair_layout images"),
        (not_json, "config.json is not valid JSON"),
        (no_object, "config.json holds no JSON object"),
        (wrong_object, "config.json .* is broken .*download the model again"),
        (lambda _: {"name": "builtin", "revision": "main"}, "builtin model has no revision .*leave the revision out"),
        (lambda _: {"image_size": 40}, "image_size 40 is not a multiple of the model's 16 pixels; use 32"),
        (lambda _: {"adapter": "/no/such/adapter"}, "no folder '/no/such/adapter'; .* a repository as <owner>"),
        (lambda folder: {"adapter": str(folder)}, "no adapter_config.json"),
        (adapter_of_another_model, "trained on Idefics3ForConditionalGeneration, not on Qwen2VL"),
        (adapter_of_another_size, "does not fit this model .*use it with its model"),
        (adapter_for_other_layers, "disagree on .* weights .*use it with the model"),
        (adapter_pickled, "only adapter_model.bin"),
        (adapter_of_adapters, "of the kind XLORA, and only LORA is loaded"),
        (adapter_of_prompts, "of the kind PROMPT_TUNING, and only LORA is loaded"),
        (adapter_without_a_kind, "of the kind None, and only LORA is loaded"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_in_one_line(
    folder: Path, spoil: Callable[[Path], dict[str, object]], message: str
) -> None:
    changes = spoil(folder)
    with pytest.raises(ModelRefused, match=message) as refusal:
        load_dynamics(settings(folder, **changes), "cpu")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("layout", ["video", "three"])
def test_a_layout_that_the_family_does_not_have_is_refused(tmp_path: Path, layout: str) -> None:
    with pytest.raises(ModelRefused, match=f"idefics3 does not take pair_layout {layout}; use images or auto"):
        resolve(settings(save_tiny("idefics3", tmp_path), pair_layout=layout))


@pytest.mark.parametrize("lost", ["obs", "next_obs"])
def test_a_model_that_never_gets_one_of_the_images_is_refused(
    qwen: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    whole = QwenInputs.__call__

    def losing(self: QwenInputs, obs: Images, next_obs: Images, device: torch.device) -> dict[str, torch.Tensor]:
        images = {"obs": obs, "next_obs": next_obs}
        return whole(self, **images | {lost: np.zeros_like(obs)}, device=device)

    monkeypatch.setattr(QwenInputs, "__call__", losing)
    with pytest.raises(ModelRefused, match="does not see both images"):
        load_dynamics(settings(qwen), "cpu")


@pytest.mark.parametrize(
    ("field", "value"),
    [("dtype", "int8"), ("batch_size", 0), ("prompt", ""), ("pair_layout", ""), ("nmae", "builtin")],
)
def test_impossible_settings_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(Refused, match=f"^{field}(: .*given: {value!r}| has no place)") as refusal:
        ModelSettings.model_validate({field: value})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("use_dora", [False, True])
def test_an_adapter_answers_as_its_merged_model_does(folder: Path, tmp_path: Path, use_dora: bool) -> None:
    adapter = save_adapter(folder, tmp_path / "lora", use_dora=use_dora)
    obs, next_obs = np.random.default_rng(0).integers(0, 256, (2, 4, 32, 32, 3), dtype=np.uint8)
    actions = ["the hand moves left"] * 4
    base = load_dynamics(settings(folder), "cpu").score(obs, next_obs, actions)
    adapted = load_dynamics(settings(folder, adapter=str(adapter)), "cpu").score(obs, next_obs, actions)
    kept = load_dynamics(settings(folder, adapter=str(adapter), dtype="bfloat16"), "cpu").score(obs, next_obs, actions)
    assert np.abs(adapted - base).max() > 0.1
    np.testing.assert_allclose(kept, adapted, atol=0.1)


def test_a_trained_model_is_asked_as_it_was_trained_unless_told_otherwise(folder: Path, tmp_path: Path) -> None:
    adapter = save_adapter(folder, tmp_path / "lora")
    own = {"prompt": "what happens", "image_size": 64, "pair_layout": "images"}
    (folder / TRAINED_AS).write_text(json.dumps(own))

    def found(**given: Any) -> tuple[Any, ...]:
        settings = resolve(ModelSettings(name=f"hf:{folder}", **given), "cpu").settings
        return settings.prompt, settings.image_size, settings.pair_layout

    assert found() == ("what happens", 64, "images")
    assert found(prompt="what moves", image_size=32) == ("what moves", 32, "images")
    (adapter / TRAINED_AS).write_text(json.dumps({"prompt": None, "image_size": 32, "pair_layout": "video"}))
    assert found(adapter=str(adapter)) == (DEFAULT_PROMPT, 32, "video"), "an adapter knows better than its base"
    sizes = ("true", "4", "9000", '"32"')
    broken = ["{", "[]", "{}", '{"prompt": "a"}', *(f'{{"image_size": {size}}}' for size in sizes)]
    broken += ['{"image_size": 32, "prompt": ""}', '{"image_size": 32, "pair_layout": 3}']
    for content in broken:
        (folder / TRAINED_AS).write_text(content)
        with pytest.raises(ModelRefused, match=TRAINED_AS) as refused:
            found()
        assert "\n" not in str(refused.value)


def test_a_gpu_that_is_too_small_for_a_batch_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(HuggingFaceDynamics, "score", too_large)
    with pytest.raises(ModelRefused, match=r"GPU has too little memory.*--batch-size"):
        load_dynamics(settings(save_tiny("qwen2_vl", tmp_path)), "cpu")


def test_weights_are_counted_by_the_headers_of_their_files(tmp_path: Path) -> None:
    folder = save_tiny("qwen2_vl", tmp_path)
    model: Any = load_dynamics(settings(folder), "cpu")
    stored = sum(tensor.numel() for path in folder.glob("*.safetensors") for tensor in load_file(path).values())
    assert resolve(settings(folder), "cpu").weight_bytes == 4 * stored
    assert resolve(settings(folder), "cuda").weight_bytes == 2 * stored
    assert stored >= sum(parameter.numel() for parameter in model.model.parameters())
    (weights,) = folder.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelRefused, match=r"is broken.*download the model again"):
        _ = resolve(settings(folder), "cpu").weight_bytes
