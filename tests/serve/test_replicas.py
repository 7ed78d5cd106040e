"""Models behind the service: how requests become batches, and what a GPU that is too small is told."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ray import serve

from lake.errors import ModelRefused
from models.protocols import Images
from models.settings import ModelSettings, WorldSettings
from serve import replicas
from serve.replicas import Dynamics, World
from tests.serve.conftest import LIMITS


@pytest.fixture(autouse=True)
def replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ray Serve gather batches in this process, too: it reads the settings of the replica."""
    context = SimpleNamespace(_deployment_config=SimpleNamespace(max_ongoing_requests=100))
    monkeypatch.setattr(serve, "get_replica_context", lambda: context)


class FakeModel:
    """Has memory for `room` images, and remembers how many observations and candidates it was asked for."""

    image_size = 8

    def __init__(self, room: float = np.inf) -> None:
        self._room = room
        self.asked: list[tuple[int, int]] = []

    def sample(self, obs: Images, actions: list[str], n: int, *, seed: Any = 0) -> Images:
        self.asked.append((len(obs), n))
        self._need(len(obs) * n)
        return np.repeat(obs[:, None], n, axis=1)

    def shown(self, images: Images) -> Images:
        return images

    def annotate(self, obs: Images, next_obs: Images) -> None:
        self._need(len(obs))

    def _need(self, images: int) -> None:
        if images > self._room:
            raise torch.OutOfMemoryError("out of memory")


def test_a_batch_of_predictions_counts_requests_whatever_their_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FakeModel()
    monkeypatch.setattr(replicas, "load_world", lambda settings, device: model)

    async def ask() -> list[tuple[Images, Images]]:
        world = World(WorldSettings(batch_size=3), "cpu", 0.01)
        black = np.zeros((8, 8, 3), np.uint8)
        return await asyncio.gather(*(world.sample((black, "a", LIMITS.candidates, seed)) for seed in range(4)))

    drawn = asyncio.run(ask())
    assert [len(candidates) for _, candidates in drawn] == [LIMITS.candidates] * 4
    warm_up, *batches = model.asked
    assert warm_up == (1, 1)
    assert batches == [(3, LIMITS.candidates), (1, LIMITS.candidates)]


@pytest.mark.parametrize(
    ("batch_size", "message"),
    [
        (64, r"too little memory for 64 pairs: lower --batch-size$"),
        (32, r"too little memory for 32 pairs: use a smaller model or a larger GPU$"),
    ],
)
def test_a_gpu_too_small_for_the_pairs_of_a_batch(
    monkeypatch: pytest.MonkeyPatch, batch_size: int, message: str
) -> None:
    monkeypatch.setattr(replicas, "load_dynamics", lambda settings, device, answers_few: FakeModel(room=8))
    with pytest.raises(ModelRefused, match=message):
        Dynamics(ModelSettings(), "cuda", batch_size, 0.01)


@pytest.mark.parametrize(
    ("batch_size", "message"),
    [
        (4, r"4 observations with 16 candidates each: lower --world-batch-size$"),
        (1, r"1 observations with 16 candidates each: use a smaller model or a larger GPU$"),
    ],
)
def test_a_gpu_too_small_for_the_candidates_of_a_batch(
    monkeypatch: pytest.MonkeyPatch, batch_size: int, message: str
) -> None:
    monkeypatch.setattr(replicas, "load_world", lambda settings, device: FakeModel(room=8))
    with pytest.raises(ModelRefused, match=message):
        World(WorldSettings(batch_size=batch_size), "cuda", 0.01)
