"""`worldlake serve` as its user starts it: Ray Serve, real models, real HTTP."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import httpx
import pytest

from lake.tables import Lake
from tests.lake.filled import fill
from tests.runs import wait_until
from tests.serve.test_label import Pairs, body
from tests.worldlake.command import PROGRAM, worldlake

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("live") / "lake"
    fill(Lake(str(folder)))
    return str(folder)


@pytest.fixture
def service(
    lake: str, models: object, on_cluster: str, tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[bytes], str, str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [PROGRAM, "serve", "--lake", lake, "--port", str(port), "--world", "none"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(process, url, tmp_path / "log")
        until_printed(tmp_path / "log", "?token=")
        (token,) = re.findall(rf"^open {url}/[?]token=(wl_[\w-]+)$", (tmp_path / "log").read_text(), re.MULTILINE)
        yield process, url, token
    finally:
        process.kill()
        process.wait()


def until_printed(log: Path, text: str) -> None:
    wait_until(lambda: text in log.read_text(), 60)


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    def is_ready() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return httpx.get(f"{url}/readyz", timeout=30).status_code == 200
        except httpx.TransportError:
            return False

    wait_until(is_ready)


def test_requests_share_batches_and_each_gets_its_own_labels(
    service: tuple[subprocess.Popen[bytes], str, str], pairs: Pairs
) -> None:
    process, url, token = service
    http = httpx.Client(headers={"Authorization": f"Bearer {token}"}, timeout=120)

    def ask(row: int) -> str | None:
        answer = http.post(f"{url}/v1/label", json=body([pairs[row]]))
        assert answer.status_code == 200, answer.text
        action: str | None = answer.json()["labels"][0]["action"]
        return action

    assert httpx.post(f"{url}/v1/label", json=body(pairs[:1])).status_code == 401
    assert "Set-Cookie" in httpx.get(f"{url}/", params={"token": token}).headers
    rows = list(range(len(pairs))) * 3
    with ThreadPoolExecutor(12) as threads:
        together = list(threads.map(ask, rows))
    assert together == [ask(row) for row in range(len(pairs))] * 3
    # What was accepted is finished when the service is told to end.
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(ask, row) for row in range(8)]
        # They were sent together: when one is answered, all have been accepted.
        wait(waiting, return_when=FIRST_COMPLETED)
        process.send_signal(signal.SIGTERM)
        assert [one.result() for one in waiting] == together[:8]
    assert process.wait(120) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "there is no key: worldlake keys create"),
        (["--model", "hf:/nowhere"], "no folder"),
        (["--world", "gpt"], "unknown model"),
        (["--policy", "/nowhere.yaml"], "give a YAML file"),
        (["--replicas", "4-1"], "--replicas"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(lake: str, options: list[str], message: str) -> None:
    code, said = worldlake(
        "serve", "--lake", lake, *(["--world", "none"] if "--world" not in options else []), *options
    )
    assert code == 2, said
    assert message in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_port_that_something_listens_at_is_refused(tmp_path: Path) -> None:
    Lake(str(tmp_path)).create()
    with socket.socket() as other:
        # As Ray's proxies do: the kernel would share requests out among all who listen so.
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        code, said = worldlake("serve", "--lake", str(tmp_path), "--port", str(other.getsockname()[1]))
    assert code == 2
    waiting, refused = said.strip().splitlines()
    assert waiting.endswith("is taken: waiting up to 20 s for it")
    assert refused.endswith(": choose another --port")


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    lake = str(tmp_path / "lake")
    Lake(lake).create()
    code, token = worldlake("keys", "create", "robot", "--scope", "label", "--scope", "read", "--lake", lake)
    assert code == 0
    assert token.startswith("wl_")
    assert worldlake("keys", "create", "robot", "--scope", "label", "--lake", lake)[0] == 2
    assert "--days 0" in worldlake("keys", "create", "late", "--scope", "label", "--days", "0", "--lake", lake)[1]
    _, listed = worldlake("keys", "list", "--lake", lake)
    assert "robot" in listed
    assert token.strip().split("_")[2] not in listed
    assert worldlake("keys", "revoke", "robot", "--lake", lake)[0] == 0
    assert "robot" not in worldlake("keys", "list", "--lake", lake)[1]
