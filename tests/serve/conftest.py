"""The application over a lake with triples, with the models of the batch path in this process instead of behind Ray."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from labeling.annotate import LabelPairs
from labeling.labeler import LabelerSettings, resolve_labeler
from labeling.policy import load_policy
from labeling.stream import SAMPLES, block
from lake.tables import Lake
from models.loading import load_dynamics
from models.protocols import Images
from models.settings import ModelSettings, WorldSettings
from models.world_loading import load_world
from sample_world.pairs import clip_pairs
from serve import middleware
from serve.app import build_app
from serve.auth import Guard, session_key
from serve.idempotency import Answers
from serve.keys import Keys
from serve.limits import Limits
from serve.live_writer import LiveWriter
from serve.queries import Reading
from serve.services import Services
from serve.uploads import Uploads
from serve.videos import Videos
from tests.lake.filled import Filled, fill
from training.builtin.world import new_model, new_tokenizer, write_folder

LIMITS = Limits(
    body_bytes=1 << 20, pixels=1_000_000, pairs=8, candidates=8, rows=20, sql_rows=50, sql_seconds=3, video_seconds=30
)


SESSION, TOKEN = session_key()
"""Of services whose lake has no keys."""


def asking(services: Services) -> TestClient:
    """A client of an application, with the token of its session."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    return TestClient(build_app(services), raise_server_exceptions=False, headers=headers)


class InProcess:
    """`serve.services.Models` of real models."""

    def __init__(self, world: Path) -> None:
        self.dynamics = load_dynamics(ModelSettings(batch_size=8), "cpu")
        self.world = load_world(WorldSettings(name=f"hf:{world}"), "cpu")
        self._label = LabelPairs(self.dynamics)

    async def label(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        labeled: list[dict[str, Any]] = self._label(block(rows, SAMPLES)).to_pylist()
        return labeled

    async def score(self, obs: Images, candidates: Images, action: str) -> Sequence[float]:
        frames = np.repeat(obs[None], len(candidates), axis=0)
        scores: list[float] = self.dynamics.score(frames, candidates, [action] * len(candidates)).tolist()
        return scores

    async def sample(self, obs: Images, action: str, n: int, seed: int) -> tuple[Images, Images]:
        return self.world.shown(obs[None])[0], self.world.sample(obs[None], [action], n, seed=[seed])[0]


@dataclass(frozen=True)
class Served:
    """An application and what it stands on."""

    services: Services
    client: TestClient
    filled: Filled


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> InProcess:
    torch.manual_seed(0)
    model = new_model(new_tokenizer())
    model.model.vqmodel.quantize.embedding.weight.data.normal_(std=0.5)
    folder = tmp_path_factory.mktemp("world")
    write_folder(model, folder)
    return InProcess(folder)


class WrittenHere:
    """`serve.services.Writing` in this process."""

    def __init__(self, writer: LiveWriter) -> None:
        self.writer = writer
        self._alone = asyncio.Lock()

    async def write(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        async with self._alone:
            found = await asyncio.to_thread(self.writer.write_now, rows)
        return [found[row["triple_id"]] for row in rows if row["triple_id"] in found]


def serve(lake: Lake, models: InProcess, sources: tuple[str, ...] = ()) -> Services:
    labeler = resolve_labeler(LabelerSettings(), "cpu")
    policy = load_policy("builtin")
    return Services(
        lake=lake,
        models=models,
        writer=WrittenHere(LiveWriter(lake, labeler, policy)),
        answers=Answers(lake),
        guard=Guard(Keys(lake), SESSION),
        uploads=Uploads(labeler.image_size, labeler.settings.sampling.jpeg_quality, LIMITS.pixels),
        videos=Videos(lake, labeler, LIMITS, sources),
        policy=policy,
        labeler_id=labeler.id,
        dynamics_size=labeler.image_size,
        world_size=models.world.image_size,
        limits=LIMITS,
    )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, models: InProcess) -> Iterator[Served]:
    filled = fill(Lake(str(tmp_path_factory.mktemp("served") / "lake")))
    services = serve(filled.lake, models)
    with asking(services) as client:
        yield Served(services, client, filled)
    services.uploads.close()


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """An empty lake."""
    made = Lake(str(tmp_path / "lake"))
    made.create()
    return made


@pytest.fixture(autouse=True)
def started_with_its_first_query(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that answers queries takes seconds to start, and most services of a single test are asked none."""

    async def later(self: Reading) -> None:
        pass

    monkeypatch.setattr(Reading, "prepare", later)


@pytest.fixture(autouse=True)
def no_refusals_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit log of a process has few lines a second for requests without a key; here many are asked."""
    monkeypatch.setattr(middleware, "_refusals", middleware._Refusals())


@pytest.fixture
def services(lake: Lake, models: InProcess) -> Iterator[Services]:
    made = serve(lake, models)
    yield made
    close(made)


@pytest.fixture
def client(services: Services) -> Iterator[TestClient]:
    with asking(services) as made:
        yield made


def writer_of(services: Services) -> LiveWriter:
    assert isinstance(services.writer, WrittenHere)
    return services.writer.writer


def close(services: Services) -> None:
    services.uploads.close()
    writer_of(services).close()


@pytest.fixture(scope="session")
def pairs() -> list[tuple[bytes, bytes, str]]:
    """JPEGs of both frames and the action, of a clip that no model was trained on."""
    made = clip_pairs(77)
    jpegs = [
        cv2.imencode(".jpg", frame[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes() for frame in made.frames
    ]
    return [(jpegs[a], jpegs[b], action) for (a, b), action in zip(made.index, made.actions, strict=True)]


def as_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
