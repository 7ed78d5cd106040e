from __future__ import annotations

import asyncio
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from labeling.annotate import LabelPairs
from labeling.stream import SAMPLES, block
from models.loading import load_dynamics
from models.settings import ModelSettings
from serve.problems import Problem
from tests.serve.conftest import LIMITS, Served, as_base64

Pairs = list[tuple[bytes, bytes, str]]


def body(pairs: Pairs) -> dict[str, Any]:
    return {"pairs": [{"obs": as_base64(obs), "next_obs": as_base64(after)} for obs, after, _ in pairs]}


def test_labels_are_those_of_the_batch_path(served: Served, pairs: Pairs) -> None:
    answer = served.client.post("/v1/label", json=body(pairs[:8]))
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["labeler_id"] == served.services.labeler_id
    rows = [{"triple_id": str(i), "obs": obs, "next_obs": after} for i, (obs, after, _) in enumerate(pairs[:8])]
    labeled = LabelPairs(load_dynamics(ModelSettings(batch_size=3), "cpu"))(block(rows, SAMPLES)).to_pylist()
    for live, batch in zip(found["labels"], labeled, strict=True):
        assert live["action"] == batch["action"]
        assert live["confidence"] == pytest.approx(batch["confidence"], abs=1e-4)
        assert live["scores"]["direction"] == pytest.approx(batch["direction"], abs=1e-3)
        assert live["verdict"] == ("rejected" if live["reasons"] else "accepted")
    assert any(live["verdict"] == "accepted" for live in found["labels"])
    right = [live["action"] == action for live, (_, _, action) in zip(found["labels"], pairs[:8], strict=True)]
    assert np.mean(right) > 0.7


def test_files_are_labeled_as_base64_is(served: Served, pairs: Pairs) -> None:
    obs, after, _ = pairs[0]
    files = {"obs": ("a.jpg", obs, "image/jpeg"), "next_obs": ("b.jpg", after, "image/jpeg")}
    answer = served.client.post("/v1/label", files=files)
    assert answer.status_code == 200, answer.text
    assert answer.json() == served.client.post("/v1/label", json=body(pairs[:1])).json()


def test_a_picture_of_any_size_and_format_is_cropped_as_frames_are(served: Served, pairs: Pairs) -> None:
    wide = []
    for content in pairs[0][:2]:
        image = Image.open(io.BytesIO(content)).resize((256, 256), Image.Resampling.BICUBIC)
        canvas = Image.new("RGBA", (400, 256), "black")
        canvas.paste(image, (72, 0))
        out = io.BytesIO()
        canvas.save(out, "png")
        wide.append(out.getvalue())
    label = served.client.post("/v1/label", json=body([(wide[0], wide[1], "")])).json()["labels"][0]
    assert label["action"] == pairs[0][2]


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises many pixels, and holds few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 4096))
        + chunk(b"IEND", b"")
    )


def drawn(form: str, width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height)).save(out, form)
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (png_header(40_000, 25_000), "too-many-pixels"),
        (png_header(1001, 1000), "too-many-pixels"),
        (drawn("png", 1, 400_000), "image"),
        (b"no image at all", "image"),
        (b"", "image"),
        (drawn("gif", 64, 64), "image"),
    ],
)
def test_what_cannot_be_decoded_is_a_problem(served: Served, pairs: Pairs, content: bytes, kind: str) -> None:
    answer = served.client.post("/v1/label", json=body([pairs[0], (pairs[0][0], content, "")]))
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == f"urn:worldlake:problem:{kind}"
    assert problem["instance"] == "/v1/label"
    assert "pairs[1].next_obs" in problem["detail"]


def test_a_picture_that_is_cut_off_is_no_picture(served: Served, pairs: Pairs) -> None:
    obs, after, _ = pairs[0]
    answer = served.client.post("/v1/label", json=body([(obs, after[: len(after) // 2], "")]))
    assert answer.status_code == 422
    assert "not a whole image" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("arguments", "status", "kind"),
    [
        ({"json": {"pairs": []}}, 422, "invalid"),
        ({"json": {"pairs": [{"obs": "%%%", "next_obs": ""}]}}, 422, "invalid"),
        ({"json": {"pairs": [{"obs": "", "next_obs": ""}]}}, 422, "image"),
        ({"json": {"pairs": [{"obs": "a", "next_obs": ""}]}}, 422, "invalid"),
        ({"json": {"pairs": [{"obs": "", "next_obs": "", "extra": 1}]}}, 422, "invalid"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 422, "invalid"),
        ({"json": {"pairs": [{"obs": "", "next_obs": ""}] * (LIMITS.pairs + 1)}}, 422, "too-many-pairs"),
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "media-type"),
        ({"content": b"x" * (LIMITS.body_bytes + 1)}, 413, "body"),
        ({"content": iter([b"x" * 1000] * 1100), "headers": {"content-type": "application/json"}}, 413, "body"),
        ({"files": {"obs": b"x"}}, 422, "invalid"),
        ({"files": {"a": b"x", "b": b"x", "c": b"x"}}, 400, "bad-request"),
    ],
)
def test_a_bad_request_is_a_problem(served: Served, arguments: dict[str, Any], status: int, kind: str) -> None:
    answer = served.client.post("/v1/label", **arguments)
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:worldlake:problem:{kind}")
    assert answer.json()["status"] == status


def test_a_deadline_that_has_passed_is_said(served: Served) -> None:
    with pytest.raises(Problem) as refused:
        asyncio.run(served.services.within(0.01, lambda: asyncio.sleep(10)))
    assert (refused.value.status, refused.value.kind) == (504, "deadline")
