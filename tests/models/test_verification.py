from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from models.loading import load_dynamics
from models.protocols import Annotation, Images
from models.settings import ModelSettings, WorldSettings
from models.verification import predict, resized
from models.world_loading import load_world
from tests.models.tiny import save_tiny
from training.builtin.world import new_model, new_tokenizer, write_folder


class Grays:
    """A world model whose candidates are plain pictures of given gray levels, one list an observation."""

    def __init__(self, levels: Sequence[Sequence[int]], image_size: int = 8) -> None:
        self.levels, self.image_size, self.seeds = levels, image_size, [0]

    def sample(self, obs: Images, actions: Sequence[str], n: int, *, seed: int = 0) -> Images:
        assert obs.shape == (len(self.levels), self.image_size, self.image_size, 3)
        self.seeds.append(seed)
        levels = np.array([row[:n] for row in self.levels], np.uint8)
        shape = (*levels.shape, self.image_size, self.image_size, 3)
        return np.broadcast_to(levels[:, :, None, None, None], shape).copy()

    def shown(self, images: Images) -> Images:
        return images

    def score(self, obs: Images, actions: Sequence[str], next_obs: Images) -> npt.NDArray[np.float32]:
        raise NotImplementedError


class Wants:
    """A dynamics model that finds a picture the likelier the nearer its gray level is to the number in the action."""

    def __init__(self, image_size: int = 16) -> None:
        self.image_size, self.calls = image_size, 0

    def annotate(self, obs: Images, next_obs: Images) -> list[Annotation]:
        raise NotImplementedError

    def score(self, obs: Images, next_obs: Images, actions: Sequence[str]) -> npt.NDArray[np.float32]:
        assert obs.shape == next_obs.shape == (len(actions), self.image_size, self.image_size, 3)
        self.calls += 1
        wanted = np.array([float(action) for action in actions])
        return -np.abs(next_obs.mean((1, 2, 3)) - wanted).astype(np.float32)


@hypothesis(max_examples=50, deadline=None)
@given(st.data(), st.integers(1, 5), st.integers(1, 4))
def test_the_candidate_nearest_to_the_action_is_chosen(data: st.DataObject, n: int, batch: int) -> None:
    level = st.integers(0, 255)
    levels = data.draw(st.lists(st.lists(level, min_size=n, max_size=n), min_size=batch, max_size=batch))
    wanted = data.draw(st.lists(level, min_size=batch, max_size=batch))
    world, dynamics = Grays(levels), Wants()
    obs = np.zeros((batch, 32, 32, 3), np.uint8)
    found = predict(world, dynamics, obs, [str(one) for one in wanted], n, seed=7, keep_candidates=True)
    assert dynamics.calls == 1
    assert world.seeds == [0, 7]
    assert found.candidates is not None
    assert found.candidates.shape == (batch, n, 8, 8, 3)
    for row, target, scores, place, image in zip(levels, wanted, found.scores, found.chosen, found.images, strict=True):
        assert scores.tolist() == [-abs(one - target) for one in row]
        assert place == scores.argmax()
        assert (image == row[place]).all()


def test_a_candidate_without_a_score_is_not_chosen() -> None:
    class Partly(Wants):
        def score(self, obs: Images, next_obs: Images, actions: Sequence[str]) -> npt.NDArray[np.float32]:
            scores = super().score(obs, next_obs, actions)
            scores[next_obs.mean((1, 2, 3)) < 100] = np.nan
            return scores

    obs = np.zeros((2, 8, 8, 3), np.uint8)
    found = predict(Grays([[9, 200], [9, 9]]), Partly(), obs, ["9", "9"], 2)
    assert found.chosen.tolist() == [1, 0]
    assert found.candidates is None


def test_bad_calls_are_refused() -> None:
    obs = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="0 candidates"):
        predict(Grays([[1]]), Wants(), obs, ["1"], 0)
    with pytest.raises(ValueError, match="2 actions for 1"):
        predict(Grays([[1]]), Wants(), obs, ["1", "2"], 1)


def test_sizes() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3), dtype=np.uint8)
    assert resized(noise, 8) is noise
    halves = resized(noise, 4)
    assert np.abs(halves.astype(float) - noise.reshape(2, 4, 2, 4, 2, 3).mean((2, 4))).max() <= 0.5
    assert resized(noise, 16).shape == (2, 16, 16, 3)


def test_real_models(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = new_model(new_tokenizer())
    model.model.vqmodel.quantize.embedding.weight.data.normal_(std=0.5)
    write_folder(model, tmp_path / "world")
    world = load_world(WorldSettings(name=f"hf:{tmp_path / 'world'}"), "cpu")
    folder = save_tiny("qwen2_vl", tmp_path / "dynamics")
    dynamics = load_dynamics(ModelSettings(name=f"hf:{folder}", image_size=32), "cpu")
    obs = np.random.default_rng(0).integers(0, 255, (2, 48, 48, 3), dtype=np.uint8)
    actions = ["the red shape moves left", "it gets darker"]
    found = predict(world, dynamics, obs, actions, 3, keep_candidates=True)
    assert found.candidates is not None
    assert found.images.shape == (2, 32, 32, 3)
    small = resized(world.shown(resized(obs, 32)), 32)
    for i in range(3):
        alone = dynamics.score(small, resized(found.candidates[:, i], 32), actions)
        assert found.scores[:, i] == pytest.approx(alone, abs=1e-4)
    again = predict(world, dynamics, obs, actions, 3)
    assert np.array_equal(again.images, found.images)
    assert np.array_equal(found.images[0], found.candidates[0, found.chosen[0]])
