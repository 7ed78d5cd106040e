"""The patch layout against the processors whose layout it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoConfig, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from models.dynamics.qwen_vl_inputs import QwenInputs
from models.dynamics.qwen_vl_patches import CHUNKED_ATTENTION, lay_out
from models.loading import load_dynamics
from models.protocols import Images
from models.settings import DEFAULT_PROMPT, ModelSettings
from tests.models.tiny import QWEN, save_tiny

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def videos(obs: Images, next_obs: Images) -> torch.Tensor:
    return torch.from_numpy(np.stack([obs, next_obs], axis=1))


@hypothesis_settings(deadline=None)
@given(
    patch_size=st.sampled_from([8, 14, 16]),
    merge_size=st.sampled_from([1, 2]),
    blocks=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    batch=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_images_are_laid_out_as_the_stock_processor_does(
    patch_size: int, merge_size: int, blocks: tuple[int, int], batch: int, seed: int
) -> None:
    height, width = (blocks[0] * patch_size * merge_size, blocks[1] * patch_size * merge_size)
    images = np.random.default_rng(seed).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    layout = {"patch_size": patch_size, "merge_size": merge_size}
    stock = Qwen2VLImageProcessorPil(
        **layout, image_mean=MEAN, image_std=STD, do_resize=False, size={"shortest_edge": 1, "longest_edge": 10**6}
    )([Image.fromarray(image) for image in images], return_tensors="np")
    patches = lay_out(videos(images, images), **layout, mean=MEAN, std=STD)
    np.testing.assert_allclose(patches, stock["pixel_values"], atol=1e-5)


@hypothesis_settings(deadline=None)
@given(seed=st.integers(0, 99), merge_size=st.sampled_from([1, 2]))
def test_a_pair_is_its_two_images_slice_by_slice(seed: int, merge_size: int) -> None:
    obs, next_obs = np.random.default_rng(seed).integers(0, 256, (2, 2, 32, 48, 3), dtype=np.uint8)
    layout = {"patch_size": 8, "merge_size": merge_size, "mean": MEAN, "std": STD}
    slices = lay_out(videos(obs, next_obs), **layout).reshape(-1, 3, 2, 64)
    for slot, images in enumerate((obs, next_obs)):
        alone = lay_out(videos(images, images), **layout).reshape(-1, 3, 2, 64)
        np.testing.assert_array_equal(slices[:, :, slot], alone[:, :, slot])


def test_a_pair_is_laid_out_as_the_stock_video_processor_does() -> None:
    pytest.importorskip("torchvision", reason="the stock video processor needs torchvision")
    from transformers import Qwen2VLVideoProcessor

    obs, next_obs = np.random.default_rng(0).integers(0, 256, (2, 1, 56, 84, 3), dtype=np.uint8)
    stock = Qwen2VLVideoProcessor(image_mean=MEAN, image_std=STD, do_resize=False, do_sample_frames=False)(
        [np.concatenate([obs, next_obs])], return_tensors="np"
    )
    patches = lay_out(videos(obs, next_obs), patch_size=14, merge_size=2, mean=MEAN, std=STD)
    np.testing.assert_allclose(patches, stock["pixel_values_videos"], atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 30, 32, 3), (1, 32, 30, 3), (1, 32, 32, 1)])
def test_frames_that_do_not_divide_are_an_error(shape: tuple[int, ...]) -> None:
    frames = np.zeros(shape, np.uint8)
    with pytest.raises(ValueError, match="do not divide into"):
        lay_out(videos(frames, frames), patch_size=8, merge_size=2, mean=MEAN, std=STD)


@pytest.mark.parametrize("layout", ["images", "video"])
@pytest.mark.parametrize("family", QWEN)
def test_inputs_are_those_of_the_stock_processor(tmp_path: Path, family: str, layout: str) -> None:
    pytest.importorskip("torchvision", reason="the stock processors need torchvision")
    import transformers

    folder = save_tiny(family, tmp_path)
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ours = QwenInputs(folder, config, tokenizer, 32, layout, DEFAULT_PROMPT)
    obs, next_obs = np.random.default_rng(0).integers(0, 256, (2, 1, 32, 32, 3), dtype=np.uint8)

    sizes = {"patch_size": 8, "merge_size": 2, "image_mean": MEAN, "image_std": STD, "do_resize": False}
    video = (transformers.Qwen3VLVideoProcessor if "3" in family else transformers.Qwen2VLVideoProcessor)(**sizes)
    processor = {
        "qwen2_vl": transformers.Qwen2VLProcessor,
        "qwen2_5_vl": transformers.Qwen2_5_VLProcessor,
        "qwen3_vl": transformers.Qwen3VLProcessor,
    }[family](Qwen2VLImageProcessorPil(**sizes), tokenizer, video, chat_template=tokenizer.chat_template)
    content = [{"type": "video"}] if layout == "video" else [{"type": "image"}] * 2
    message = {"role": "user", "content": [*content, {"type": "text", "text": DEFAULT_PROMPT}]}
    frames = {"images": [Image.fromarray(obs[0]), Image.fromarray(next_obs[0])]}
    if layout == "video":
        metadata = transformers.video_utils.VideoMetadata(total_num_frames=2, fps=1.0, frames_indices=[0, 1])
        frames = {"videos": [np.concatenate([obs, next_obs])], "video_metadata": [metadata], "do_sample_frames": False}
    stock = processor(
        text=[processor.apply_chat_template([message], add_generation_prompt=True)], return_tensors="pt", **frames
    )
    made = ours(obs, next_obs, torch.device("cpu"))
    assert stock["input_ids"].tolist() == made["input_ids"].tolist()
    for name in made:
        torch.testing.assert_close(stock[name], made[name], check_dtype=False)


@pytest.mark.parametrize("size", [32, 48])  # 48 makes windows of unlike sizes in Qwen2.5-VL
@pytest.mark.parametrize("family", QWEN)
def test_attention_in_chunks_scores_as_the_stock_one(tmp_path: Path, family: str, size: int) -> None:
    settings = ModelSettings(name=f"hf:{save_tiny(family, tmp_path)}", image_size=size, batch_size=3)
    model: Any = load_dynamics(settings, "cpu")
    obs, next_obs = np.random.default_rng(0).integers(0, 256, (2, 3, size, size, 3), dtype=np.uint8)
    actions = ["the hand moves left"] * 3
    chunked = model.score(obs, next_obs, actions)
    assert model.model.model.visual.config._attn_implementation == CHUNKED_ATTENTION
    model.model.set_attn_implementation({"vision_config": "sdpa"})
    np.testing.assert_allclose(chunked, model.score(obs, next_obs, actions), atol=1e-5)
