"""A crowd that never finishes what it begins, at every route and page: others are answered, and memory comes back."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from statistics import median

import httpx
import psutil
import pytest

from lake.tables import Lake
from serve.explorer.pages import _PAGES
from serve.keys import Keys
from serve.limits import Limits
from tests.lake.filled import fill
from tests.serve.test_live import wait_until_ready
from tests.worldlake.command import PROGRAM

CROWD = 300
LATEST_S = 5.0
"""For an answer of a few milliseconds, on a machine that others use."""
DEADLINE_S = Limits().deadline_s
"""For what reads the lake, beside complete requests of others that do."""
LARGE = {"sql": "SELECT repeat('a', 7000000) AS a"}
MORE = {"/login": "post", "/logout": "post", "/static/vendor/uPlot.iife.min.js": "get"}


class Service:
    """`worldlake serve` of a lake with keys, as its user starts it."""

    def __init__(self, url: str, process: subprocess.Popen[bytes], mine: str, others: str) -> None:
        self.url, self.process, self.mine, self.others = url, process, mine, others
        host, port = url.removeprefix("http://").split(":")
        self.address = (host, int(port))

    def mib(self) -> dict[str, int]:
        """Resident memory of the proxy and the ingress."""
        found = {}
        for one in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                command = " ".join(one.cmdline())
                for name in ("ProxyActor", "ServeReplica:worldlake:Ingress"):
                    if name in command:
                        found[name] = one.memory_info().rss >> 20
        return found

    def routes(self) -> list[tuple[str, str]]:
        documented = httpx.get(f"{self.url}/openapi.json").json()["paths"]
        found = [(method, path) for path, operations in documented.items() for method in operations]
        found += [("get", path) for path in _PAGES] + [(method, path) for path, method in MORE.items()]
        return [(method.upper(), re.sub(r"\{\w+\}", "a", path)) for method, path in found]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("door")
    lake = fill(Lake(str(folder / "lake"))).lake
    mine, others = (Keys(lake).create(name, ("admin",), per_minute=1_000_000)[1] for name in ("mine", "others"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [PROGRAM, "serve", "--lake", lake.uri, "--port", str(port), "--world", "none"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    made = Service(f"http://127.0.0.1:{port}", process, mine, others)
    try:
        wait_until_ready(process, made.url, folder / "log")
        yield made
    finally:
        process.terminate()
        process.wait(60)


def content(kind: str, method: str, path: str, key: str | None) -> bytes:
    """Return one client's request: half of its headers, a byte of its body, or all of it."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    lines += [f"Authorization: Bearer {key}"] if key else []
    lines += ["Content-Type: application/json"] if path != "/login" else []
    if kind == "silent":
        return "\r\n".join([*lines, "X-"]).encode()
    if kind == "slow body":
        return "\r\n".join([*lines, "Content-Length: 1000", "", "{"]).encode()
    body = str(LARGE).replace("'", '"', 2).encode() if path == "/v1/sql" else b"{}"
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


@contextlib.contextmanager
def crowd(service: Service, sent: bytes) -> Iterator[None]:
    with contextlib.ExitStack() as connections:
        for _ in range(CROWD):
            one = connections.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect(service.address)
            with contextlib.suppress(OSError):
                one.sendall(sent)
        yield


def assert_others_are_answered(service: Service, what: str) -> float:
    """Health, a page, and the API for another key. Returns the seconds of the slowest."""
    key = {"Authorization": f"Bearer {service.others}"}
    slowest = 0.0
    for path, headers in (("/healthz", {}), ("/metrics", {}), ("/", {}), ("/v1/labelers", key)):
        began = time.monotonic()
        while True:
            answer = httpx.get(f"{service.url}{path}", headers=headers, timeout=DEADLINE_S if headers else LATEST_S)
            taken = time.monotonic() - began
            # A page has the places of all who need no key: where a burst has them it is asked for again, as told.
            if path != "/" or answer.status_code != 503 or taken > LATEST_S:
                break
            time.sleep(0.1)
        slowest = max(slowest, taken)
        assert answer.status_code == 200, (what, path, answer.text)
    return slowest


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("has_key", [False, True])
@pytest.mark.parametrize("kind", ["silent", "slow body", "slow reader"])
def test_a_crowd_at_any_route_keeps_nobody_else_out(service: Service, kind: str, has_key: bool) -> None:
    assert_others_are_answered(service, "before")
    before, slowest = service.mib(), []
    for method, path in service.routes():
        sent = content(kind, method, path, service.mine if has_key else None)
        with crowd(service, sent):
            slowest.append(assert_others_are_answered(service, f"{CROWD} x {kind} at {method} {path}"))
    who, figures = "a key" if has_key else "no key", f"{median(slowest):.3f} s (median), {max(slowest):.3f} s (worst)"
    print(f"{kind}, {who}, {len(slowest)} routes: {figures}; MiB {before} to {service.mib()}")
    for name, mib in service.mib().items():
        assert mib < before[name] + 200, (name, before, service.mib())


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("has_key", [False, True])
def test_bodies_of_30_mib_take_a_bounded_amount_of_memory_and_give_it_back(service: Service, has_key: bool) -> None:
    key = f"Authorization: Bearer {service.mine}\r\n" if has_key else ""
    head = f"POST /v1/sql HTTP/1.1\r\nHost: a\r\n{key}Content-Length: {31 << 20}\r\n\r\n"
    before, most = service.mib(), {}
    with contextlib.ExitStack() as connections:
        for _ in range(30):
            one = connections.enter_context(socket.create_connection(service.address, timeout=2))
            with contextlib.suppress(OSError):
                one.sendall(head.encode())
                one.sendall(bytes(30 << 20))
            most = {name: max(mib, most.get(name, 0)) for name, mib in service.mib().items()}
        assert_others_are_answered(service, "30 bodies of 30 MiB")
    time.sleep(3)
    after = service.mib()
    print(f"{'a key' if has_key else 'no key'}: MiB {before}, at most {most}, after {after}")
    for name in before:
        assert most[name] < before[name] + 400, (before, most)
        assert after[name] < before[name] + 150, (before, after)
