"""Videos labeled live, as events: what a labeling run would say of them, within limits, from allowed places only."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi.testclient import TestClient
from httpx import Response
from starlette.types import Message

from labeling.images import decode_images
from labeling.sample import SampleVideos
from labeling.segments import sample_video
from labeling.settings import SamplingSettings
from lake import catalog
from lake.commits import Committer
from lake.ids import triple_id
from lake.storage import Entry
from lake.tables import Lake, now, to_table
from sample_world.clips import write_folder
from serve.api.label_video import PATH
from serve.app import build_app
from serve.keys import Keys
from serve.services import Services
from serve.videos import Videos
from tests.conftest import Bucket
from tests.media import Medium
from tests.serve.conftest import TOKEN, InProcess, asking, close, serve
from tests.serve.test_client import listening


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("footage"), [81])[0]


def upload(client: TestClient, path: Path, write: str = "no") -> Response:
    with path.open("rb") as file:
        return client.post("/v1/label/video", params={"write": write}, files={"video": file})


def events(answer: Response) -> list[tuple[str, dict[str, Any]]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    parts = [part.split("\n") for part in answer.text.strip().split("\n\n")]
    return [(event.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for event, data in parts]


def test_a_video_gets_the_labels_of_a_labeling_run(client: TestClient, models: InProcess, clip: Path) -> None:
    *triples, (last, sums) = events(upload(client, clip))
    assert last == "done"
    pairs = [pair for segment in sample_video(str(clip), SamplingSettings(), 64) for pair in segment.pairs]
    obs, after = (decode_images([getattr(pair, name) for pair in pairs]) for name in ("obs", "next_obs"))
    expected = [annotation.action for annotation in models.dynamics.annotate(obs, after)]
    assert [data["action"] for _, data in triples] == expected
    assert sums["sampled"] == len(pairs) == sums["accepted"] + sums["rejected"] + sums["failed"]
    assert {name for name, _ in triples} == {"triple"}
    assert all(data["obs"] and data["next_time_s"] > data["obs_time_s"] for _, data in triples)


def test_a_video_that_is_written_twice_is_there_once(client: TestClient, lake: Lake, clip: Path) -> None:
    first, again = (events(upload(client, clip, "durable")) for _ in range(2))
    assert first == again
    for name, verdict in (("triples", "accepted"), ("rejections", "rejected")):
        written = lake.read(name, ["triple_id", "uri", "obs_pts", "time_base"]).to_pylist()
        told = sorted(data["triple_id"] for kind, data in first[:-1] if data["verdict"] == verdict)
        assert sorted(row["triple_id"] for row in written) == told
        assert all(row["uri"].startswith("upload:") and row["time_base"] for row in written)


def test_what_is_no_short_video_is_refused_in_one_line(client: TestClient, tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    long = tmp_path / "long.mp4"
    source = ["-f", "lavfi", "-i", "testsrc=size=64x64:rate=2:duration=40"]
    subprocess.run(["ffmpeg", "-v", "error", *source, str(long)], check=True)
    wide = tmp_path / "wide.mp4"
    source = ["-f", "lavfi", "-i", "testsrc=size=2048x1024:rate=1:duration=1"]
    subprocess.run(["ffmpeg", "-v", "error", *source, str(wide)], check=True)
    for path, kind in ((text, "video"), (long, "too-long"), (wide, "too-many-pixels")):
        answer = upload(client, path)
        assert (answer.status_code, answer.json()["type"]) == (422, f"urn:worldlake:problem:{kind}")


@pytest.mark.slow
def test_a_video_of_any_kind_is_answered(client: TestClient, corpus: dict[str, Medium]) -> None:
    for medium in corpus.values():
        answer = upload(client, medium.path)
        assert answer.status_code in (200, 422), (medium.path, answer.text)
        if answer.status_code == 200:
            assert events(answer)[-1][0] in ("done", "problem")


def until(condition: Callable[[], bool], timeout_s: float) -> None:
    waits_until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < waits_until
        time.sleep(0.02)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where videos are kept meanwhile: a folder that no other process of this machine uses, so it can be counted."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def folders(places: Path) -> set[Path]:
    return set(places.glob("worldlake-video-*"))


@pytest.mark.slow
def test_more_videos_than_have_a_place_are_refused_before_they_are_read(
    client: TestClient, services: Services, clip: Path, places: Path
) -> None:
    parts: list[int] = []

    def body() -> Iterator[bytes]:
        parts.append(1)
        yield b"--a\r\n"

    with ExitStack() as taken:
        for number in range(services.limits.videos):
            taken.enter_context(services.videos.place(f"{number}"))
        answer = client.post(PATH, content=body(), headers={"Content-Type": "multipart/form-data; boundary=a"})
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:worldlake:problem:busy")
        assert answer.headers["Retry-After"]
    # Given back at the end, so that the next ones are not refused.
    for _ in range(services.limits.videos + 1):
        assert events(upload(client, clip))[-1][0] == "done"
    for content, status in (({"files": {"video": b"none"}}, 422), ({"json": {"uri": "/etc/passwd"}}, 422)):
        for _ in range(services.limits.videos + 1):
            assert client.post(PATH, **content).status_code == status
    assert folders(places) == set(), "nothing is left on the disk"


@pytest.mark.slow
def test_twenty_videos_at_once_take_the_places_of_two(lake: Lake, models: InProcess, clip: Path, places: Path) -> None:
    """A place is taken before a video is received, not when it is sampled: disk and memory have a bound.

    Of one key no more than one of them is let in, so that another finds a place.
    """
    most = 0
    tokens = [Keys(lake).create(name, ("label",))[1] for name in ("mine", "others")]
    services = serve(lake, models)

    def send(url: str, token: str) -> int:
        def slowly() -> Iterator[bytes]:
            content = clip.read_bytes()
            yield b'--a\r\nContent-Disposition: form-data; name="video"; filename="v"\r\n\r\n' + content[:100]
            time.sleep(2)
            yield content[100:] + b"\r\n--a--\r\n"

        headers = {"Content-Type": "multipart/form-data; boundary=a", "Authorization": f"Bearer {token}"}
        return httpx.post(f"{url}{PATH}", content=slowly(), headers=headers, timeout=60).status_code

    for url in listening(build_app(services)):
        with ThreadPoolExecutor(20) as threads:
            sent = [[threads.submit(send, url, token) for _ in range(10)] for token in tokens]
            while not all(one.done() for of_key in sent for one in of_key):
                most = max(most, len(folders(places)))
                # Reads of the lake are not held up.
                assert httpx.get(f"{url}/readyz", timeout=30).status_code == 200
                time.sleep(0.2)
        for of_key in sent:
            assert sorted(one.result() for one in of_key) == [200] + [503] * 9
    assert most == services.limits.videos
    assert folders(places) == set()
    close(services)


def test_a_client_that_leaves_gives_its_place_back(services: Services, clip: Path, places: Path) -> None:
    for url in listening(build_app(services)):
        for _ in range(services.limits.videos + 1):
            host = urlsplit(url)
            with socket.create_connection((host.hostname, host.port)) as leaving:
                head = f"POST {PATH} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 1000\r\n"
                leaving.sendall(head.encode() + b"Content-Type: multipart/form-data; boundary=a\r\n\r\n--a\r\n")
                until(lambda: folders(places) != set(), 60)
            until(lambda: folders(places) == set(), 60)


def test_a_place_is_given_back_when_sampling_has_ended(
    services: Services, clip: Path, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the client leaves while it is sent something: the process that samples ends before the place does."""
    order: list[str] = []
    close, place = SampleVideos.close, Videos.place

    def closing(self: SampleVideos) -> None:
        close(self)
        order.append("sampled")

    @contextmanager
    def placed(self: Videos, who: str) -> Iterator[Path]:
        with place(self, who) as folder:
            yield folder
        order.append("free")

    monkeypatch.setattr(SampleVideos, "close", closing)
    monkeypatch.setattr(Videos, "place", placed)

    async def leave() -> None:
        left = asyncio.Event()
        body = b'--a\r\nContent-Disposition: form-data; name="video"; filename="v"\r\n\r\n' + clip.read_bytes()
        messages = iter([{"type": "http.request", "body": body + b"\r\n--a--\r\n", "more_body": False}])

        async def receive() -> Message:
            if (message := next(messages, None)) is not None:
                return message
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message.get("body"):
                left.set()
                await asyncio.Future()

        headers = [
            (b"content-type", b"multipart/form-data; boundary=a"),
            (b"authorization", f"Bearer {TOKEN}".encode()),
        ]
        scope = {"type": "http", "method": "POST", "path": PATH, "headers": headers, "query_string": b""}
        await build_app(services)(scope, receive, send)
        await asyncio.sleep(1)

    asyncio.run(leave())
    assert order == ["sampled", "free"]


@pytest.mark.parametrize(
    "uri",
    [
        "file:///etc/passwd",
        "/etc/passwd",
        "http://169.254.169.254/latest/meta-data/",
        "s3://other/secret.mp4",
        "s3://allowed-not/a.mp4",
        "s3://allowed/footage-private/a.mp4",
        "s3://allowed/footage/../private/a.mp4",
        "S3://allowed/footage/a.mp4",
    ],
)
def test_nothing_is_fetched_from_elsewhere(
    lake: Lake, models: InProcess, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = serve(lake, models, sources=("s3://allowed/footage",))
    asked: list[str] = []

    def pages(self: object, uri: str) -> Iterator[list[Any]]:
        asked.append(uri)
        yield []

    monkeypatch.setattr("lake.storage.StorageConfig.pages", pages)
    with asking(services) as client:
        answer = client.post("/v1/label/video", json={"uri": uri})
    # Keys of S3 have no parents: two dots are part of a name under the allowed prefix, which does not exist.
    is_inside = uri.startswith("s3://allowed/footage/")
    assert answer.status_code == (404 if is_inside else 422)
    assert asked == ([uri] if is_inside else [])
    close(services)


def test_a_folder_that_is_named_as_a_video_is_not_listed_to_its_end(
    lake: Lake, models: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = serve(lake, models, sources=("s3://allowed/footage",))

    def pages(self: object, uri: str) -> Iterator[list[Entry]]:
        yield [Entry("s3://allowed/footage/a.mp4", 1, "")]
        raise AssertionError("a second page of millions of objects was asked for")

    monkeypatch.setattr("lake.storage.StorageConfig.pages", pages)
    with asking(services) as client:
        assert client.post("/v1/label/video", json={"uri": "s3://allowed/footage"}).status_code == 404
    close(services)


def test_a_stream_that_fails_says_so(client: TestClient, services: Services, clip: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(services.models, "label", lambda rows: 1 / 0)
    kind, problem = events(upload(client, clip))[-1]
    assert (kind, problem["type"]) == ("problem", "urn:worldlake:problem:internal")


def test_a_cataloged_video_is_told_and_never_written(bucket: Bucket, models: InProcess, clip: Path) -> None:
    bucket.put("videos/clip.mp4", clip)
    lake = Lake(f"{bucket.uri}/lake")
    catalog.ingest(lake, [f"{bucket.uri}/videos"])
    (video,) = lake.read("videos", ["video_id", "uri"]).to_pylist()
    services = serve(lake, models, sources=(f"{bucket.uri}/videos",))
    with asking(services) as client:
        ask = {"url": "/v1/label/video?write=durable", "json": {"uri": video["uri"]}}
        live = events(client.post(**ask))
        assert live[-1][1]["sampled"] > 1
        committer = Committer(lake, services.labeler_id, "run")
        committer.fence()
        same = {"labeler_id": services.labeler_id, "video_id": video["video_id"], "run_id": "run"}
        row = {"triple_id": triple_id(video["video_id"], 3, 9, services.labeler_id), "obs_pts": 3, "next_pts": 9}
        images = {"action": "as it was labeled", "obs": b"a", "next_obs": b"b", "labeled_at": now()}
        tables = {"triples": {**same, **row, **images}, "progress": {**same, "sampled": 1, "accepted": 1}}
        committer.commit([lake.write_file(to_table(name, [r]), name, "run") for name, r in tables.items()])
        (kind, told), (_, sums) = events(client.post(**ask))
        assert (kind, told["action"], told["triple_id"]) == ("triple", "as it was labeled", row["triple_id"])
        assert sums == {"sampled": 1, "accepted": 1, "rejected": 0, "failed": 0}
    assert lake.read("triples", ["triple_id"]).num_rows == 1
    assert lake.read("rejections", ["triple_id"]).num_rows == 0
    close(services)
