"""The client against the application, over a real socket."""

from __future__ import annotations

import base64
import io
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from PIL import Image

import lake.retry
from sample_world.clips import write_folder
from serve.app import build_app
from serve.client import Client, ServiceError
from serve.problems import busy
from serve.schemas import VideoTriple
from tests.serve.conftest import TOKEN, Served

Pairs = list[tuple[bytes, bytes, str]]


def listening(app: FastAPI) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Client]:
    for url in listening(build_app(served.services)):
        # As `worldlake serve` prints it.
        with Client(f"{url}/?token={TOKEN}", attempts=2) as client:
            yield client


def test_a_video_is_told_pair_by_pair(client: Client, tmp_path: Path) -> None:
    video = write_folder(tmp_path, [82], frames=100)[0]
    told: list[VideoTriple] = []
    telling = client.label_video(video)
    while True:
        try:
            told.append(next(telling))
        except StopIteration as end:
            sums = end.value
            break
    assert sums["sampled"] == len(told) > 0
    assert base64.b64decode(told[0].obs or "").startswith(b"\xff\xd8")
    with pytest.raises(ServiceError, match="these places only"):
        next(client.label_video("s3://bucket/a.mp4"))


def test_answers_are_typed(client: Client, served: Served, pairs: Pairs) -> None:
    labels = client.label([(obs, after) for obs, after, _ in pairs[:3]])
    assert [label.action for label in labels.labels] == [action for _, _, action in pairs[:3]]
    predicted = client.predict(pairs[0][0], pairs[0][2], n=2)
    assert np.asarray(Image.open(io.BytesIO(base64.b64decode(predicted.best.image)))).shape == (32, 32, 3)
    triples = list(client.triples(dataset="one"))
    assert len(triples) == 20
    triple_id = triples[0].triple_id
    images = served.filled.images[triple_id]
    assert (client.image(triple_id), client.image(triple_id, "next_obs")) == images
    assert client.sql("SELECT 1 AS one").rows == [[1]]
    assert len(client.labelers()) == 2


def test_what_is_refused_says_why(client: Client) -> None:
    with pytest.raises(ServiceError, match="exactly one SELECT") as refused:
        client.sql("DROP TABLE triples")
    assert refused.value.problem.type == "urn:worldlake:problem:sql"


def test_a_connection_that_breaks_is_made_again_with_the_same_key(
    client: Client, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers.get("Idempotency-Key"))
        if len(keys) == 1:
            raise httpx.ReadError("connection reset by peer")
        return httpx.Response(200, json=known)

    asked = [pair[:2] for pair in pairs[:1]]
    known = client.label(asked).model_dump(mode="json")
    with Client("http://service") as patient:
        patient._http = httpx.Client(base_url="http://service", transport=httpx.MockTransport(answer))
        monkeypatch.setattr(lake.retry, "time", SimpleNamespace(sleep=lambda _: None, monotonic=time.monotonic))
        assert patient.label(asked, write="durable", idempotency_key="mine").model_dump(mode="json") == known
    assert keys == ["mine", "mine"]


def test_a_busy_service_is_asked_again_and_a_proxy_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    app, asked = FastAPI(), []

    @app.get("/v1/labelers")
    async def labelers() -> object:
        asked.append(1)
        return busy("too much", 3).response("/v1/labelers") if len(asked) < 3 else []

    @app.post("/v1/sql")
    async def sql() -> PlainTextResponse:
        return PlainTextResponse("<html>bad gateway</html>", 502)

    for url in listening(app):
        with Client(url, attempts=4) as client:
            monkeypatch.setattr(lake.retry, "time", SimpleNamespace(sleep=waits.append, monotonic=time.monotonic))
            assert client.labelers() == []
            with pytest.raises(ServiceError, match="bad gateway"):
                client.sql("SELECT 1")
    assert waits == [3, 3, 0.5, 1, 2]
    with Client(url, attempts=2) as client, pytest.raises(httpx.ConnectError):
        client.labelers()
