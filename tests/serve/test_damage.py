"""Files that are nearly what they say: whatever is sent, the answer is a documented one, in time, and no 5xx."""

from __future__ import annotations

import io
import json
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from fastapi.testclient import TestClient
from httpx import Response
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from labeling.annotate import LabelPairs
from labeling.sample import SampleVideos
from lake.tables import Lake
from lake.video_headers import prober
from models.protocols import Annotation, Images
from sample_world.clips import write_folder
from serve.api.label_video import PATH
from serve.limits import Limits
from serve.problems import ProblemDocument
from serve.schemas import LabelOut
from tests.media import VP9, ffmpeg, real_clips
from tests.serve.conftest import InProcess, asking, close, serve
from tests.serve.test_label_video import events, upload

Pairs = list[tuple[bytes, bytes, str]]

pytestmark = pytest.mark.slow

LATEST_S = Limits().deadline_s
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
# What stands before the fields of headers: sizes, counts, times, offsets, sampling factors.
MARKS = (
    *(b"IHDR", b"PLTE", b"IDAT", b"\xff\xc0", b"\xff\xc2", b"\xff\xc4", b"\xff\xda", b"\xff\xdb", b"Exif"),
    *(b"RIFF", b"VP8 ", b"VP8L", b"VP8X", b"ANIM", b"ANMF"),
    *(b"ftyp", b"moov", b"mvhd", b"tkhd", b"mdhd", b"elst", b"stsd", b"avc1", b"avcC", b"stts", b"ctts", b"stss"),
    *(b"stsc", b"stsz", b"stco", b"mdat", b"\x1a\x45\xdf\xa3", b"\x15\x49\xa9\x66", b"\x16\x54\xae\x6b", b"\xe0"),
    *(b"\x1f\x43\xb6\x75", b"\xa3", b"V_VP9"),
)


def flipped(draw: st.DrawFn, content: bytes, others: list[bytes]) -> bytes:
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 8))):
        changed[draw(st.integers(0, len(content) - 1))] ^= draw(st.integers(1, 255))
    return bytes(changed)


def with_other_field(draw: st.DrawFn, content: bytes, others: list[bytes]) -> bytes:
    places = [place for mark in MARKS if (place := content.find(mark)) >= 0] or [0]
    size, order = draw(st.sampled_from((1, 2, 4))), draw(st.sampled_from("<>"))
    value = struct.pack(order + {1: "B", 2: "H", 4: "I"}[size], draw(st.sampled_from(EXTREMES)) & ((1 << 8 * size) - 1))
    start = draw(st.sampled_from(places)) + draw(st.integers(-4, 32))
    return content[: max(0, start)] + value + content[max(0, start) + size :]


def cut(draw: st.DrawFn, content: bytes, others: list[bytes]) -> bytes:
    start = draw(st.integers(0, len(content) - 1))
    return content[:start] + content[start + draw(st.integers(1, len(content))) :]


def spliced(draw: st.DrawFn, content: bytes, others: list[bytes]) -> bytes:
    other = draw(st.sampled_from(others))
    return content[: draw(st.integers(0, len(content)))] + other[draw(st.integers(0, len(other) - 1)) :]


@st.composite
def damaged(draw: st.DrawFn, whole: list[bytes]) -> bytes:
    content = draw(st.sampled_from(whole))
    for change in draw(st.lists(st.sampled_from((flipped, with_other_field, cut, spliced)), min_size=1, max_size=3)):
        content = change(draw, content, whole) if content else content
    return with_checksums(content)


def with_checksums(content: bytes) -> bytes:
    """The checksums of a PNG put right, or nothing behind the first of them would ever be tried."""
    made, place = content[:8], 8
    if made != b"\x89PNG\r\n\x1a\n":
        return content
    while place + 12 <= len(content):
        size = int.from_bytes(content[place : place + 4], "big")
        chunk = content[place + 4 : place + 8 + size]
        made += content[place : place + 4] + chunk + struct.pack(">I", zlib.crc32(chunk))
        place += 12 + size
    return made + content[place:]


def ask(examples: int, whole: list[bytes], work: Callable[[bytes], None]) -> None:
    @given(damaged(whole))
    @settings(
        max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True
    )
    def each(content: bytes) -> None:
        begun = time.monotonic()
        work(content)
        assert time.monotonic() - begun < LATEST_S

    each()


def assert_documented(client: TestClient, path: str, answer: Response) -> None:
    documented = client.app.openapi()["paths"][path]["post"]["responses"]  # type: ignore[attr-defined]
    assert answer.status_code < 500, answer.text
    assert str(answer.status_code) in documented, answer.text
    if answer.status_code != 200:
        assert answer.headers["content-type"] == "application/problem+json"
        ProblemDocument.model_validate_json(answer.content)


class Same:
    """A dynamics model to which nothing ever happens: it takes no time, and has seen nothing but its images."""

    image_size = 64

    def annotate(self, obs: Images, next_obs: Images) -> list[Annotation]:
        return [Annotation("nothing happens", -0.1, 3)] * len(obs)

    def score(self, obs: Images, next_obs: Images, actions: list[str]) -> np.ndarray:
        return np.zeros(len(obs), np.float32)


class Quick(InProcess):
    def __init__(self) -> None:
        self.world = SimpleNamespace(image_size=32)  # type: ignore[assignment]
        self._label = LabelPairs(Same())  # type: ignore[arg-type]


class Lasting(SampleVideos):
    """One for all videos: its decode process takes a second to start."""

    def close(self) -> None:
        pass


class Never:
    def requested(self) -> bool:
        return False


@pytest.fixture
def client(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    services = serve(lake, Quick())
    lasting = Lasting(services.videos._labeler, lake.storage, Never(), LATEST_S / 2)
    with prober(lake.storage, LATEST_S / 2) as probing, asking(services) as made:
        monkeypatch.setattr("serve.videos.prober", lambda storage: nullcontext(probing))
        monkeypatch.setattr("serve.videos.SampleVideos", lambda *settings: lasting)
        yield made
    SampleVideos.close(lasting)
    close(services)


@pytest.fixture(scope="module")
def pictures(pairs: Pairs) -> list[bytes]:
    """A frame of the lake, and one of real footage in every format, some of them with all that the format has."""
    with av.open(str(real_clips()[1])) as video:
        real = next(video.decode(video=0)).to_image().resize((160, 120))
    turned = Image.Exif()
    turned[0x0112] = 6

    def saved(image: Image.Image, form: str, **options: Any) -> bytes:
        out = io.BytesIO()
        image.save(out, form, **options)
        return out.getvalue()

    return [
        pairs[0][0],
        saved(real, "jpeg", progressive=True, exif=turned),
        saved(real.convert("CMYK"), "jpeg"),
        saved(real.convert("RGBA"), "png"),
        saved(real.quantize(16), "png", transparency=3),
        saved(real, "webp"),
        saved(real, "webp", lossless=True),
        saved(real, "webp", save_all=True, append_images=[real.rotate(90)]),
    ]


def test_a_damaged_picture_gets_a_documented_answer(client: TestClient, pairs: Pairs, pictures: list[bytes]) -> None:
    outcomes: set[int] = set()

    def label(content: bytes) -> None:
        answer = client.post("/v1/label", files={"obs": content, "next_obs": pairs[0][1]})
        assert_documented(client, "/v1/label", answer)
        outcomes.add(answer.status_code)
        if answer.status_code == 200:
            (found,) = LabelOut.model_validate_json(answer.content).labels
            assert found.verdict != "failed", found

    ask(100, pictures, label)
    assert outcomes == {200, 422}
    assert [client.post("/v1/label", files={"obs": one, "next_obs": one}).status_code for one in pictures] == [200] * 8


def test_a_damaged_video_gets_a_documented_answer(client: TestClient, tmp_path: Path) -> None:
    whole = [write_folder(tmp_path / "world", [81], frames=50)[0], tmp_path / "real.mp4", tmp_path / "real.webm"]
    small = ("-t", "1.5", "-vf", "scale=128:-2", "-an")
    for path, codec in zip(whole[1:], (("-c:v", "libx264", "-bf", "2", "-g", "12"), VP9), strict=True):
        ffmpeg("-i", str(real_clips()[2]), *small, *codec, str(path))
    path = tmp_path / "damaged"
    outcomes: set[str] = set()

    def label(content: bytes) -> None:
        path.write_bytes(content)
        answer = upload(client, path)
        assert_documented(client, PATH, answer)
        if answer.status_code != 200:
            outcomes.add("refused")
            return
        *told, (last, end) = events(answer)
        assert {name for name, _ in told} <= {"triple"}
        if last == "problem":
            assert ProblemDocument.model_validate_json(json.dumps(end)).status < 500, end
        else:
            assert last == "done"
            assert end["sampled"] == len(told)
        outcomes.add(last)

    ask(25, [one.read_bytes() for one in whole], label)
    assert outcomes >= {"refused", "done"}
    for one in whole:
        assert events(upload(client, one))[-1][1]["sampled"] > 0
