"""Models that are right, that are wrong and that copy obs, and the figures that must come of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

from evaluation.dynamics import dynamics_figures, judge_dynamics
from evaluation.features import ImageFeatures
from evaluation.intervals import Share
from evaluation.probes import PROBES, alternatives
from evaluation.world import CEILING, COPY, SAMPLE, Pairs, WorldTest, world_figures
from lake.errors import ModelRefused
from tests.evaluation.fakes import ACTIONS, Knows, Paints, after, pairs, scene
from tests.models.tiny import save_tiny

OBS, NEXT_OBS = pairs()
OTHERS = alternatives(ACTIONS, seed=0)


def test_a_dynamics_model_that_is_right() -> None:
    rows = judge_dynamics(Knows(), OBS, NEXT_OBS, ACTIONS, OTHERS)
    figures = dynamics_figures(rows, ACTIONS)
    assert figures["exact_match"] == Share(4, 4)
    assert figures["rougeL"].value == 1
    assert figures["bleu"].value == pytest.approx(100)
    assert figures["confidence"].value == pytest.approx(-0.1)
    for probe in PROBES:
        assert figures[f"prefers_true_to_{probe}"] == Share(4, 4)
        assert figures[f"margin_to_{probe}"].value > 0
    turned = dynamics_figures(judge_dynamics(Knows(turned=True), OBS, NEXT_OBS, ACTIONS, OTHERS), ACTIONS)
    assert [turned[f"prefers_true_to_{probe}"] for probe in PROBES] == [Share(0, 4)] * 4


def test_probes_without_an_alternative_do_not_count() -> None:
    still = np.stack([OBS[0], NEXT_OBS[0]])
    rows = judge_dynamics(Knows(), OBS[:2], still, ["it waits", "it waits"], alternatives(["it waits"] * 2, 0))
    figures = dynamics_figures(rows, ["it waits"] * 2)
    assert [figures[f"prefers_true_to_{probe}"].total for probe in PROBES] == [0, 0, 1, 1]


def named(picture: Any) -> str:
    return Knows().annotate(scene()[None], picture[None])[0].action


@pytest.mark.parametrize("n", [1, 4])
def test_a_world_model_with_a_verifier(n: int) -> None:
    test = WorldTest(Paints(), n, verifier=Knows(), referee=Knows())
    rows, made = test.judge_pairs(Pairs(OBS, NEXT_OBS, ACTIONS, OTHERS, [named] * 4), seed=0)
    figures = world_figures(rows)
    best = figures[test.method]
    assert best["changed_psnr_db"].value == pytest.approx(58.92, abs=0.01)
    assert best["copy_rate"] == Share(0, 4)
    assert best["referee_agrees"] == best["oracle_agrees"] == Share(4, 4)
    assert figures[COPY]["copy_rate"] == Share(4, 4)
    assert figures[COPY]["oracle_agrees"] == Share(0, 4)
    assert figures[CEILING]["oracle_agrees"] == Share(4, 4)
    assert figures["likelihoods"]["prefers_true_to_copy"] == Share(4, 4)
    assert made.candidates is not None
    assert made.candidates.shape[:2] == (4, n)
    if n > 1:
        # The first candidate is always a wrong one here.
        assert figures[SAMPLE]["oracle_agrees"] == Share(0, 4)
        assert made.chosen is not None
        assert made.chosen.tolist() == [3] * 4


def test_a_world_model_that_copies() -> None:
    test = WorldTest(Paints(copies=True), referee=Knows())
    rows, made = test.judge_pairs(Pairs(OBS, NEXT_OBS, ACTIONS, OTHERS), seed=0)
    figures = world_figures(rows)
    assert list(figures) == [SAMPLE, COPY, CEILING, "likelihoods"]
    assert figures[SAMPLE]["copy_rate"] == Share(4, 4)
    assert figures[SAMPLE]["referee_agrees"] == Share(0, 4)
    assert made.candidates is None


def test_images_of_another_size() -> None:
    obs, next_obs = (images.repeat(3, 1).repeat(3, 2) for images in (OBS, NEXT_OBS))
    rows, made = WorldTest(Paints(), 4, verifier=Knows()).judge_pairs(Pairs(obs, next_obs, ACTIONS, OTHERS), seed=0)
    assert made.predicted.shape == OBS.shape
    assert world_figures(rows)["best of 4"]["changed_psnr_db"].value > 40


def processor(kind: str) -> str:
    return (
        f'{{"image_processor_type": "{kind}", "crop_size": {{"height": 32, "width": 32}}, "do_normalize": true, '
        '"size": {"shortest_edge": 32}, "do_resize": true, "do_center_crop": true, "image_mean": [0.5, 0.5, 0.5], '
        '"image_std": [0.5, 0.5, 0.5]}'
    )


@pytest.mark.parametrize("family", ["clip", "dino"])
def test_image_features(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "image_size": 32, "patch_size": 8}
    if family == "clip":
        text = {**small, "intermediate_size": 16, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}
        config = CLIPConfig(text_config=text, vision_config={**vision, "intermediate_size": 16}, projection_dim=8)
        CLIPModel(config).save_pretrained(tmp_path)
    else:
        Dinov2Model(Dinov2Config(**vision)).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        processor("CLIPImageProcessor" if family == "clip" else "BitImageProcessor")
    )
    features = ImageFeatures(f"hf:{tmp_path}", "cpu")
    vectors = features(OBS)
    assert vectors.shape == (4, 8 if family == "clip" else 16)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    assert features.cosines(OBS, OBS) == pytest.approx([1] * 4, abs=1e-5)
    assert max(features.cosines(OBS, NEXT_OBS)) < 1
    rows, _ = WorldTest(Paints(), features=[features]).judge_pairs(Pairs(OBS, NEXT_OBS, ACTIONS, OTHERS), seed=0)
    figures = world_figures(rows)
    assert figures[SAMPLE][f"cosine hf:{tmp_path}"].value == pytest.approx(1, abs=1e-5)
    assert figures[COPY][f"cosine hf:{tmp_path}"].value < 1


def test_models_without_image_features_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="CLIP or DINO"):
        ImageFeatures(f"hf:{save_tiny('chameleon', tmp_path)}", "cpu")
    with pytest.raises(ModelRefused, match="no folder"):
        ImageFeatures("hf:/no/such/folder")


def test_the_fake_world_is_what_it_says() -> None:
    assert [named(after(scene(), action)) for action in ACTIONS] == ACTIONS
    assert named(scene()) == "nothing happens"
