"""Models in a store: real objects of a real S3 server, copied to a machine once."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText

from lake.errors import ModelRefused
from models.folders import WANTED
from models.loading import load_dynamics, resolve
from models.s3_cache import fetch
from models.settings import ModelSettings
from tests.conftest import Bucket
from tests.models.tiny import save_tiny


def test_a_model_and_an_adapter_in_a_store_are_copied_to_this_machine_once(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = save_tiny("qwen2_vl", tmp_path / "model")
    adapter = tmp_path / "adapter"
    get_peft_model(
        AutoModelForImageTextToText.from_pretrained(folder), LoraConfig(target_modules=["q_proj"])
    ).save_pretrained(adapter)
    for name, local in (("model", folder), ("adapter", adapter)):
        for path in local.iterdir():
            bucket.put(f"models/{name}/{path.name}", path)
    bucket.put("models/model/checkpoint/optimizer.safetensors", b"none of the model's")
    there = ModelSettings(name=f"{bucket.uri}/models/model", adapter=f"{bucket.uri}/models/adapter/")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: resolve(there, "cpu"), range(4)))
    here = resolve(ModelSettings(name=f"hf:{folder}", adapter=str(adapter)), "cpu")
    assert [one.identity for one in found] == [here.identity] * 4
    kept = sorted(path.name for path in (tmp_path / "cache/worldlake/models").iterdir() if path.is_dir())
    assert len(kept) == 2
    # Workers are told the name, and find what is here already.
    load_dynamics(found[0].settings, "cpu")
    config = json.loads((folder / "config.json").read_text())
    bucket.put("models/model/config.json", json.dumps(config, indent=1).encode())
    assert resolve(there, "cpu").identity != here.identity
    # A run resumes with its initial files if they are here, and is refused otherwise.
    assert resolve(found[0].settings, "cpu").identity == here.identity
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    with pytest.raises(ModelRefused, match="has been replaced"):
        resolve(found[0].settings, "cpu")
    for name, message in (
        (f"{bucket.uri}/models/none", "there is no model at"),
        (f"{bucket.uri}/models", "there is no model at"),
        ("s3://no-such-bucket/model", "cannot be read.*create it or correct the uri"),
    ):
        with pytest.raises(ModelRefused, match=message):
            resolve(ModelSettings(name=name), "cpu")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(ModelRefused, match=r"cannot be read.*AWS_ACCESS_KEY_ID"):
        resolve(there, "cpu")


def test_a_download_that_was_cut_off_is_begun_again(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for path in save_tiny("qwen2_vl", tmp_path).iterdir():
        bucket.put(f"model/{path.name}", path)
    whole, content = fetch(f"{bucket.uri}/model", WANTED)
    part = whole.with_suffix(".part")
    whole.rename(part)
    (part / "model.safetensors").write_bytes(b"half of it")
    assert fetch(f"{bucket.uri}/model", WANTED) == (whole, content)
    assert not part.exists()
    load_dynamics(ModelSettings(name=f"{bucket.uri}/model"), "cpu")
