from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from labeling.images import square_jpeg
from lake.errors import DecodeError
from lake.tables import Lake
from serve.jpegs import picture_only
from serve.uploads import PROCESSES, Uploads
from tests.lake.filled import jpeg

Pairs = list[tuple[bytes, bytes, str]]
SECRET = b"<script>smuggled</script>" * 2000


def slowly(contents: list[object], *_: int) -> list[object]:
    """As `uploads._images`, for seconds instead of images."""
    for seconds in contents:
        time.sleep(float(str(seconds)))
    return contents


@pytest.fixture
def uploads() -> Iterator[Uploads]:
    made = Uploads(64, 95, 1_000_000)
    yield made
    made.close()


def test_what_was_asked_before_it_is_no_answer_to_a_request(uploads: Uploads) -> None:
    async def run() -> None:
        given_up = [asyncio.create_task(uploads._call(slowly, [1.0 + place / 100])) for place in range(PROCESSES)]
        await asyncio.sleep(0.5)
        for call in given_up:
            call.cancel()
        asked = [[place / 100] for place in range(2 * PROCESSES)]
        assert await asyncio.gather(*(uploads._call(slowly, one) for one in asked)) == asked

    asyncio.run(run())


def test_a_request_that_takes_long_does_not_hold_up_the_next(uploads: Uploads) -> None:
    async def run() -> None:
        long = asyncio.create_task(uploads._call(slowly, [60]))
        await asyncio.sleep(0.1)
        assert await uploads._call(slowly, [0]) == [0]
        assert not long.done()

    asyncio.run(asyncio.wait_for(run(), 30))


def saved(image: Image.Image, form: str = "jpeg", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + content


def smuggled(content: bytes) -> dict[str, bytes]:
    """A file with something in it that is not the picture, wherever a JPEG has room for that."""
    start, rest = content[:2], content[2:]
    scan = content.index(b"\xff\xda")
    return {
        "application": start + segment(0xE1, SECRET) + rest,
        "comment": start + segment(0xFE, SECRET) + rest,
        "JFIF": start + segment(0xE0, b"JFIF\0" + SECRET) + rest,
        "Adobe": start + segment(0xEE, b"Adobe" + SECRET) + rest,
        "before the scan": content[:scan] + segment(0xED, SECRET) + content[scan:],
        "after the end": content + SECRET,
        "another picture": content + content.replace(b"\xff\xd9", SECRET),
    }


def test_only_the_picture_of_an_upload_goes_into_the_lake(client: TestClient, lake: Lake, pairs: Pairs) -> None:
    clean = pairs[0][0]
    files = smuggled(clean)
    for content in files.values():
        answer = client.post("/v1/label?write=durable", files={"obs": content, "next_obs": pairs[0][1]})
        assert answer.status_code == 200, answer.text
    stored = [row["obs"] for name in ("triples",) for row in lake.read(name, ["obs"]).to_pylist()]
    assert len(stored) == len(files)
    assert set(stored) == {clean}


def test_a_file_with_far_more_bytes_than_its_pixels_need_is_encoded_again(
    client: TestClient, lake: Lake, pairs: Pairs
) -> None:
    table = pairs[0][0].index(b"\xff\xdb")
    padded = pairs[0][0][:table] + segment(0xDB, b"\0" + b"\1" * 64) * 3000 + pairs[0][0][table:]
    assert picture_only(padded) == padded
    assert client.post("/v1/label?write=durable", files={"obs": padded, "next_obs": pairs[0][1]}).status_code == 200
    (row,) = lake.read("triples", ["obs"]).to_pylist()
    assert len(row["obs"]) < 20_000


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"quality": 100, "subsampling": 0}),
        ("RGB", {"progressive": True}),
        ("RGB", {"restart_marker_rows": 1}),
        ("RGB", {"keep_rgb": True, "comment": b"a comment"}),
        ("L", {}),
        ("CMYK", {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0", "icc_profile": b"x" * 100}),
    ],
)
def test_a_picture_is_the_same_without_all_else(mode: str, options: dict[str, Any]) -> None:
    with Image.open(io.BytesIO(jpeg(1))) as noise:
        content = saved(noise.convert(mode), **options)
    picture = picture_only(content)
    assert picture is not None
    with Image.open(io.BytesIO(content)) as before, Image.open(io.BytesIO(picture)) as after:
        assert before.mode == after.mode
        assert np.array_equal(np.asarray(before), np.asarray(after))
    assert picture_only(picture) == picture
    for name, other in smuggled(content).items():
        assert picture_only(other) == picture, name


def test_noise_of_the_best_quality_stays_as_it_is(uploads: Uploads) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = saved(Image.fromarray(noise), quality=100, subsampling=0)
    assert asyncio.run(uploads.images([content])) == [content]


@given(st.binary(max_size=300), st.integers(0, 300))
def test_what_is_no_picture_is_none_or_ends_where_a_picture_does(garbage: bytes, place: int) -> None:
    content = jpeg(1)
    for other in (garbage, b"\xff\xd8" + garbage, content[:place] + garbage + content[place:]):
        picture = picture_only(other)
        assert picture is None or (picture.startswith(b"\xff\xd8") and picture.endswith(b"\xff\xd9"))


def test_a_picture_with_a_hole_is_refused() -> None:
    content = jpeg(3, side=256)
    assert square_jpeg(content, 64, 95)
    middle = len(content) // 2
    for broken in (
        content[:middle] + bytes(500) + content[middle + 500 :],
        content[:middle] + content[middle + 2000 :],
        content[:middle],
    ):
        with pytest.raises(DecodeError, match="not a whole image"):
            square_jpeg(broken, 64, 95)


@pytest.mark.parametrize("kind", ["uint16", "int32", "float32"])
def test_pixels_without_a_known_white_are_refused(kind: str) -> None:
    depth = Image.fromarray((np.arange(64 * 64).reshape(64, 64) * 16).astype(kind))
    with pytest.raises(DecodeError, match="more than 8 bits"):
        square_jpeg(saved(depth, "tiff"), 64, 95)


def test_a_deep_upload_is_refused_with_the_remedy(client: TestClient, pairs: Pairs) -> None:
    depth = Image.fromarray((np.arange(64 * 64).reshape(64, 64) * 16).astype("uint16"))
    answer = client.post("/v1/label", files={"obs": saved(depth, "png"), "next_obs": pairs[0][1]})
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:worldlake:problem:image")
    assert "more than 8 bits a pixel (I;16): convert it" in answer.json()["detail"]


def test_base64_is_read_in_every_form_that_it_comes_in(client: TestClient, pairs: Pairs) -> None:
    obs, after = pairs[0][:2]
    url_safe = base64.urlsafe_b64encode(obs).decode()
    plain = base64.b64encode(after).decode()
    forms = [
        url_safe,
        url_safe.rstrip("="),
        base64.encodebytes(obs).decode(),
        f"data:image/jpeg;base64,{base64.b64encode(obs).decode()}",
    ]
    answers = [client.post("/v1/label", json={"pairs": [{"obs": form, "next_obs": plain}]}) for form in forms]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len({answer.json()["labels"][0]["triple_id"] for answer in answers}) == 1
    for form in ("data:image/jpeg,abcd", "data:image/jpeg;base64", "ab$d", "é"):
        answer = client.post("/v1/label", json={"pairs": [{"obs": form, "next_obs": plain}]})
        assert (answer.status_code, answer.json()["type"]) == (422, "urn:worldlake:problem:invalid")
