from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image
from starlette.types import Receive, Scope, Send

from bench.serving.bodies import bodies
from bench.serving.load import Load, Sample, summary
from bench.serving.models import write
from models.loading import load_dynamics
from models.settings import ModelSettings
from serve.auth import session_key
from serve.load_shedding import Admission
from serve.schemas import LabelIn

TAKES_S = 0.05


@pytest.fixture
def load() -> Iterator[Load]:
    """A server that does one thing after the other, and lets eight wait."""
    busy = asyncio.Lock()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        async with busy:
            await asyncio.sleep(TAKES_S)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    key, token = session_key()
    door = Admission(slow, at_once=8, read_keys=lambda: [key])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = uvicorn.Server(uvicorn.Config(door, lifespan="off", log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield Load(f"http://127.0.0.1:{listener.getsockname()[1]}/v1/label", [b"{}"], key=token)
        server.should_exit = True
        thread.join()


def test_clients_wait_for_their_answers(load: Load) -> None:
    asyncio.run(load.closed(4, 1.0))
    assert {one.status for one in load.samples} == {200}
    # Each waits for those of the three others.
    assert np.median([one.latency_s for one in load.samples]) >= 3 * TAKES_S


def test_requests_come_whatever_becomes_of_those_before_and_count_from_when_they_were_due(load: Load) -> None:
    asyncio.run(load.open(100, 1.0))
    found = summary(load.samples, 0, 1.0)
    assert 60 < found["sent"] < 140
    assert found["answered"] + found["refused"] == found["sent"]
    assert found["refused"] > found["answered"]
    assert found["refused_without_retry_after"] == found["failed"] == 0
    # The eighth in a queue waits for seven.
    assert max(one.latency_s for one in load.samples if one.status == 200) >= 7 * TAKES_S


def test_figures_are_of_the_time_that_was_asked_for() -> None:
    samples = [Sample(second, 0.5, 200) for second in range(10)] + [Sample(4.5, 0.001, 503, may_come_back=True)]
    found = summary(samples, 2, 7)
    assert (found["sent"], found["answered"], found["refused"], found["per_s"]) == (6, 5, 1, 1.0)
    assert found["ms"] == {"p50": 500, "p95": 500, "p99": 500}
    assert found["refusal_ms"]["p50"] == 1


@pytest.mark.parametrize("name", ["larger", "tiny-qwen"])
def test_models_with_random_weights_name_actions_and_score_them(name: str, tmp_path: Path) -> None:
    model = load_dynamics(ModelSettings(name=write(name, tmp_path), max_new_tokens=4), "cpu")
    frames = np.random.default_rng(0).integers(0, 256, (2, 1, model.image_size, model.image_size, 3), np.uint8)
    (said,) = model.annotate(*frames)
    assert said.action
    assert np.isfinite(model.score(*frames, [said.action])).all()


def test_every_request_has_a_pair_of_its_own_of_the_size_asked_for() -> None:
    assert len(set(bodies(2))) == 2
    (pair,) = LabelIn.model_validate_json(bodies(1, 96)[0]).pairs
    assert Image.open(BytesIO(pair.obs)).size == (96, 96)
