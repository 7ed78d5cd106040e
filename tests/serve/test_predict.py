from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from labeling.images import decode_images
from models.verification import predict
from tests.serve.conftest import LIMITS, InProcess, Served, as_base64

Pairs = list[tuple[bytes, bytes, str]]


def ask(served: Served, pairs: Pairs, **changes: Any) -> Any:
    asked = {"image": as_base64(pairs[0][0]), "action": pairs[0][2], "n": 3, "seed": 5, "all_candidates": True}
    return served.client.post("/v1/predict", json=asked | changes)


def test_the_candidate_with_the_best_score_is_the_answer(served: Served, pairs: Pairs) -> None:
    answer = ask(served, pairs)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert len(found["candidates"]) == 3
    assert found["best"] == max(found["candidates"], key=lambda candidate: candidate["score"])
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["best"]["image"]))))
    assert image.shape == (32, 32, 3)
    assert ask(served, pairs).json() == found
    assert ask(served, pairs, seed=6).json()["candidates"] != found["candidates"]
    alone = ask(served, pairs, all_candidates=False).json()
    assert (alone["best"], alone["candidates"]) == (found["best"], None)


def test_predictions_are_those_of_the_library(served: Served, pairs: Pairs) -> None:
    models = served.services.models
    assert isinstance(models, InProcess)
    obs = decode_images([pairs[0][0]])
    found = predict(models.world, models.dynamics, obs, [pairs[0][2]], 3, seed=[5], keep_candidates=True)
    live = ask(served, pairs).json()
    assert [candidate["score"] for candidate in live["candidates"]] == pytest.approx(found.scores[0].tolist(), abs=1e-4)
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(live["best"]["image"]))))
    assert np.array_equal(image, found.images[0])


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"n": 0}, "invalid"),
        ({"n": LIMITS.candidates + 1}, "too-many-candidates"),
        ({"action": ""}, "invalid"),
        ({"seed": -1}, "invalid"),
        ({"image": as_base64(b"no image")}, "image"),
        ({"temperature": 2}, "invalid"),
    ],
)
def test_a_bad_request_is_a_problem(served: Served, pairs: Pairs, changes: dict[str, Any], kind: str) -> None:
    answer = ask(served, pairs, **changes)
    assert (answer.status_code, answer.json()["type"]) == (422, f"urn:worldlake:problem:{kind}")


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/sql", "/login"])
def test_a_chunked_body_that_is_too_large_gets_413_where_fastapi_reads_it(served: Served, path: str) -> None:
    content = iter([b"x" * 1000] * 1100)
    kind = "application/x-www-form-urlencoded" if path == "/login" else "application/json"
    answer = served.client.post(path, content=content, headers={"content-type": kind})
    assert (answer.status_code, answer.json()["type"]) == (413, "urn:worldlake:problem:body")
