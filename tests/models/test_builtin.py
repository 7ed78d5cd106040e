"""The builtin dynamics model: what it says of held-out clips, through the files, the sampler and the loader."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from labeling.segments import FramePair, sample_segment
from labeling.settings import SamplingSettings
from models.loading import load_dynamics
from models.protocols import DynamicsModel, Images
from models.settings import ModelSettings
from sample_world.clips import NOTHING, GroundTruth, write_folder
from sample_world.pairs import transformed, unlike_pairs

WEIGHTS = Path("models/builtin/weights")
HELD_OUT = range(100_000, 100_020)
# 99.7 % of 904 pairs (bench/results/builtin.json) less the half-width of the interval for the 90 pairs of this test.
FLOOR = 0.95


@pytest.fixture(scope="module")
def model() -> DynamicsModel:
    return load_dynamics(ModelSettings(), "cpu")


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory, model: DynamicsModel) -> tuple[Images, Images, list[str]]:
    """Pairs of held-out clips that span one event or none, and what happened."""
    folder = tmp_path_factory.mktemp("clips")
    paths, pairs, actions = write_folder(folder, HELD_OUT), [], []
    truth = GroundTruth(folder)
    for path in paths:
        segment = sample_segment(str(path), None, SamplingSettings(), model.image_size)
        tick = segment.time_base[0] / segment.time_base[1]
        for pair in segment.pairs:
            action = truth.span(path.name, pair.obs_pts * tick, pair.next_pts * tick).action
            if action is not None:
                pairs.append(pair)
                actions.append(action)
    return frames(pairs, "obs"), frames(pairs, "next_obs"), actions


def frames(pairs: list[FramePair], side: str) -> Images:
    encoded = [np.frombuffer(getattr(pair, side), np.uint8) for pair in pairs]
    return np.stack([cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB) for data in encoded])


def test_names_what_happens_in_held_out_clips(model: DynamicsModel, sampled: tuple[Images, Images, list[str]]):
    obs, next_obs, actions = sampled
    labels = model.annotate(obs, next_obs)
    right = np.array([label.action == action for label, action in zip(labels, actions, strict=True)])
    assert len(actions) > 60
    assert right.mean() >= FLOOR
    confidence = np.array([label.mean_logprob for label in labels])
    if (~right).any():
        assert np.median(confidence[right]) > np.median(confidence[~right])


def test_scores_tell_a_right_label_from_others(model: DynamicsModel, sampled: tuple[Images, Images, list[str]]):
    obs, next_obs, actions = sampled
    other = [transformed(action, 2, False, True) for action in actions]
    other = [b if a != b else "it gets darker" for a, b in zip(actions, other, strict=True)]
    own = model.score(obs, next_obs, actions)
    assert (own > model.score(obs, next_obs, other)).mean() > 0.9
    happened = np.array([action != NOTHING for action in actions])
    assert (own > model.score(obs, obs, actions))[happened].mean() > 0.9
    # A turn looks like a turn from either end.
    directed = np.array([action != NOTHING and not action.endswith("turns") for action in actions])
    assert (own > model.score(next_obs, obs, actions))[directed].mean() > 0.9


def test_footage_unlike_the_sample_world_is_refused(model: DynamicsModel):
    pairs = unlike_pairs(3, count=60)
    labels = model.annotate(pairs.frames[pairs.index[:, 0]], pairs.frames[pairs.index[:, 1]])
    assert np.mean([label.action == pairs.actions[0] for label in labels]) > 0.9


def test_the_weights_are_small_and_without_pickles():
    assert {path.name for path in WEIGHTS.iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 7_000_000
