from __future__ import annotations

import datetime as dt
import json
import logging
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from lake.errors import Refused
from lake.tables import Lake
from serve.app import build_app
from serve.auth import COOKIE, Guard
from serve.keys import SCOPES, Bucket, Key, Keys, find
from tests.conftest import Bucket as StoreBucket
from tests.serve.conftest import SESSION, TOKEN, InProcess, Served, close, serve
from tests.serve.key_races import keys_of, raced


@pytest.fixture
def client(lake: Lake, models: InProcess) -> Iterator[TestClient]:
    Keys(lake).create("first", ("read",))
    services = serve(lake, models)
    with TestClient(build_app(services)) as client:
        yield client
    services.uploads.close()


def get(client: TestClient, token: str | None, path: str = "/v1/triples") -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    answer = client.get(path, headers=headers)
    return answer.status_code, answer.json().get("type", "").removeprefix("urn:worldlake:problem:")


def test_only_hashes_are_kept(lake: Lake, tmp_path: Path) -> None:
    _, token = Keys(lake).create("robot", ("label", "read"))
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert token.split("_", 2)[2].encode() not in everything
    key = find(Keys(lake).read(), token)
    assert key is not None
    assert (key.may("label"), key.may("predict")) == (True, False)


@pytest.mark.parametrize("token", ["", "x", "wl_000000000000_" + "a" * 43, "wl_\n_", "é", None])
def test_other_tokens_are_of_no_key(lake: Lake, client: TestClient, token: str | None) -> None:
    keys = Keys(lake).read()
    wrong = f"wl_{keys[0].key_id}_{'A' * 43}"
    assert find(keys, wrong) is None
    if token is None:
        assert get(client, None) == (401, "no-key")
    elif token.isascii() and "\n" not in token:
        assert get(client, token) == (401, "key")
        assert get(client, wrong) == (401, "key")
    if token is not None:
        assert find(keys, token) is None


def test_scopes_expiry_and_revocation(lake: Lake, models: InProcess) -> None:
    keys = Keys(lake)
    tokens = {scope: keys.create(scope, (scope,))[1] for scope in SCOPES}
    _, expired = keys.create("old", ("admin",), days=0)
    services = serve(lake, models)
    with TestClient(build_app(services)) as client:
        assert get(client, tokens["read"]) == (200, "")
        assert get(client, tokens["admin"]) == (200, "")
        assert get(client, tokens["label"]) == (403, "scope")
        assert get(client, expired) == (401, "key")
        assert (
            client.post("/v1/predict", json={}, headers={"Authorization": f"Bearer {tokens['read']}"}).status_code
            == 403
        )
        # Checked before the body is looked at.
        assert client.post("/v1/label", json={}).status_code == 401
        assert client.get("/healthz").status_code == 200
    services.uploads.close()
    keys.revoke("read")
    assert find(keys.read(), tokens["read"]) is None


def test_nobody_is_let_in_without_a_key_or_the_token_of_the_session(
    lake: Lake, models: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = serve(lake, models)
    monkeypatch.setattr("serve.auth._READ_EVERY_S", 0)
    with TestClient(build_app(services)) as client:
        assert get(client, None) == (401, "no-key")
        assert get(client, TOKEN) == (200, "")
        _, token = Keys(lake).create("first", ("read",))
        assert get(client, TOKEN) == (401, "key"), "a session counts while there is no key, and no longer"
        assert get(client, token) == (200, "")
        Keys(lake).revoke("first")
        assert get(client, token) == (401, "key")
        assert get(client, TOKEN) == (401, "key"), "not again, when the last key is revoked"
    services.uploads.close()


@pytest.mark.parametrize("session", [SESSION, None])
def test_deleting_every_key_of_a_lake_opens_no_service(
    lake: Lake, models: InProcess, monkeypatch: pytest.MonkeyPatch, session: Key | None
) -> None:
    """A rule of a bucket, or somebody who may write there, can empty the folder of keys: nobody gets in by that."""
    tokens = [Keys(lake).create(scope, (scope,))[1] for scope in SCOPES]
    monkeypatch.setattr("serve.auth._READ_EVERY_S", 0)
    services = replace(serve(lake, models), guard=Guard(Keys(lake), session))
    app = build_app(services)
    with TestClient(app) as client:
        assert get(client, tokens[-1]) == (200, "")
        shutil.rmtree(Path(lake.uri, "_serve/keys"))
        for path, operations in app.openapi()["paths"].items():
            for method in operations if path.startswith("/v1/") else []:
                assert client.request(method, path).status_code == 401
                for token in tokens:
                    headers = {"Authorization": f"Bearer {token}"}
                    assert client.request(method, path, headers=headers).status_code == 401
        assert get(client, TOKEN) == (401, "key")
    close(services)


def test_no_route_but_those_of_pages_and_health_is_answered_without_a_key(served: Served) -> None:
    app = served.client.app
    client = TestClient(app, follow_redirects=False)
    documented = client.get("/openapi.json").json()["paths"]
    for path, operations in documented.items():
        for method in operations:
            status = client.request(method, path).status_code
            assert (status == 401) == (path not in ("/healthz", "/readyz", "/metrics")), (method, path, status)


def test_an_unauthenticated_body_is_not_read(served: Served) -> None:
    """Also where an endpoint declares its body, which FastAPI reads before it asks a dependency."""

    async def ask(path: str) -> int:
        statuses: list[int] = []

        async def receive() -> Message:
            raise AssertionError("the body was read")

        async def send(message: Message) -> None:
            statuses.append(message.get("status", 0))

        headers = [(b"content-type", b"application/json"), (b"content-length", b"100")]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
        await served.client.app(scope, receive, send)
        return statuses[0]

    for path in ("/v1/sql", "/v1/predict", "/v1/label", "/v1/label/video"):
        assert served.client.portal.call(ask, path) == 401


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_page_of_another_site_gets_nothing_whatever_its_method(served: Served, method: str) -> None:
    path = {"GET": "/v1/kept?keep=true", "POST": "/v1/sql"}[method]
    client = TestClient(served.client.app, cookies={COOKIE: TOKEN})

    def ask(path: str = path, **headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return client.request(method, path, headers=named, json={"sql": "SELECT 1"}).status_code

    assert ask(Sec_Fetch_Site="same-origin") == ask(Sec_Fetch_Site="none") == ask() == 200
    for site in ("cross-site", "same-site", "new-kind"):
        assert ask(Sec_Fetch_Site=site) == 403
        assert ask(Sec_Fetch_Site=site, Sec_Fetch_Mode="navigate", Sec_Fetch_Dest="document") == 403
        assert ask(Sec_Fetch_Site=site, Authorization=f"Bearer {TOKEN}") == 200
    assert ask(Origin="http://evil.example") == ask(Origin="null") == 403
    assert ask(Origin="http://testserver") == 200
    for path in ("/readyz", "/openapi.json", "/logout", "/static/common.js"):
        assert ask(path, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors") == 403


def test_a_link_from_anywhere_opens_a_page(served: Served) -> None:
    opened = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert served.client.get("/triples", headers=opened).status_code == 200
    client = TestClient(served.client.app)
    assert client.get("/triples", headers=opened).status_code == 200
    assert client.get("/triples", headers=opened | {"Sec-Fetch-Dest": "iframe"}).status_code == 403


def test_the_printed_address_signs_a_browser_in_and_leaves_its_token_behind(served: Served) -> None:
    client = TestClient(served.client.app, follow_redirects=False)
    answer = client.get(f"/triples?action=a+b&token={TOKEN}")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/triples?action=a+b")
    assert client.cookies[COOKIE] == TOKEN
    assert "HttpOnly" in answer.headers["Set-Cookie"]
    assert "SameSite=strict" in answer.headers["Set-Cookie"]
    assert client.get("/v1/labelers").status_code == 200
    client = TestClient(served.client.app, follow_redirects=False)
    answer = client.get(f"/?token={TOKEN}x")
    assert answer.status_code == 401
    assert "this key is not valid" in answer.text
    assert "Set-Cookie" not in answer.headers


def test_a_key_that_asks_too_often_has_to_wait(lake: Lake, models: InProcess) -> None:
    _, token = Keys(lake).create("eager", ("read",), per_minute=3)
    services = serve(lake, models)
    with TestClient(build_app(services)) as client:
        answers = [client.get("/v1/labelers", headers={"Authorization": f"Bearer {token}"}) for _ in range(5)]
    services.uploads.close()
    assert [answer.status_code for answer in answers] == [200] * 3 + [429] * 2
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 21


@given(st.integers(1, 600), st.lists(st.floats(0, 10), min_size=1, max_size=60))
def test_a_bucket_lets_through_its_rate_and_no_more(per_minute: int, waits: list[float]) -> None:
    bucket, now, taken = Bucket(per_minute, float(per_minute), 0.0), 0.0, 0
    for wait in waits:
        now += wait
        delay = bucket.take(now)
        taken += delay == 0
        assert 0 <= delay <= 60 / per_minute + 1e-6
    assert taken <= per_minute + now * per_minute / 60 + 1e-6


def test_what_is_no_key_is_refused(lake: Lake) -> None:
    keys = Keys(lake)
    keys.create("robot", ("label",))
    for name, scopes in (("robot", ("label",)), ("", ("label",)), ("x\n", ("label",)), ("x", ()), ("x", ("root",))):
        with pytest.raises(Refused):
            keys.create(name, scopes)
    with pytest.raises(Refused, match="there is no key"):
        keys.revoke("nobody")


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_no_revoked_key_comes_back_and_no_new_one_is_lost(tmp_path: Path, pool: Any) -> None:
    workers = partial(pool, mp_context=get_context("spawn")) if pool is ProcessPoolExecutor else pool
    assert raced(partial(keys_of, str(tmp_path)), 60, workers) == ([], [])


@pytest.mark.slow
def test_no_revoked_key_comes_back_in_s3_either(bucket: StoreBucket) -> None:
    assert raced(partial(keys_of, f"{bucket.uri}/lake"), 60, ThreadPoolExecutor) == ([], [])


def test_every_key_of_a_name_is_revoked(lake: Lake) -> None:
    keys = Keys(lake)
    keys.create("robot", ("read",))
    for path in Path(lake.uri, "_serve/keys").iterdir():
        # Two that were made at the same time may have one name.
        other = json.loads(path.read_text()) | {"key_id": "0" * 12}
        path.with_name(f"{'0' * 12}.json").write_text(json.dumps(other))
        path.with_name(f"{path.name}.unfinished").write_text("half a fi")
    assert [key.name for key in keys.read()] == ["robot", "robot"]
    keys.revoke("robot")
    assert keys.read() == []


def test_keys_of_an_older_worldlake_are_refused(lake: Lake) -> None:
    Keys(lake).create("robot", ("read",))
    Path(lake.uri, "_serve/keys.json").write_text("[]")
    with pytest.raises(Refused, match="older worldlake: remove it"):
        Keys(lake).read()


def test_the_audit_log_names_the_key_and_no_secret(
    lake: Lake, models: InProcess, caplog: pytest.LogCaptureFixture
) -> None:
    key, token = Keys(lake).create("robot", ("read",))
    services = serve(lake, models)
    with caplog.at_level(logging.INFO, "serve.audit"), TestClient(build_app(services)) as client:
        get(client, token)
        get(client, token + "x")
    services.uploads.close()
    lines = [json.loads(record.message) for record in caplog.records if record.name == "serve.audit"]
    assert [(line["key"], line["path"], line["status"]) for line in lines] == [
        ("robot", "/v1/triples", 200),
        (None, "/v1/triples", 401),
    ]
    assert [line["client"] for line in lines] == ["testclient"] * 2
    assert token not in caplog.text
    assert key.digest not in caplog.text
    assert key.created_at <= dt.datetime.now(dt.UTC)


def test_a_request_has_one_id_which_its_answer_and_the_audit_log_name(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "serve.audit"):
        own, given, bad = (
            served.client.get("/healthz", headers=headers)
            for headers in (
                {},
                {"X-Request-Id": "of-a-mesh:1", "X-Forwarded-For": "192.0.2.7"},
                {"X-Request-Id": " "},
            )
        )
    ids = [answer.headers.get_list("X-Request-Id") for answer in (own, given, bad)]
    lines = [json.loads(record.message) for record in caplog.records if record.name == "serve.audit"]
    assert ids == [[line["request"]] for line in lines]
    assert ids[1] == ["of-a-mesh:1"]
    assert len(ids[0][0]) == len(ids[2][0]) == 32
    assert [line.get("forwarded_for") for line in lines] == [None, "192.0.2.7", None]


def test_keys_that_cannot_be_read_for_a_while_hold(
    lake: Lake, models: InProcess, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, token = Keys(lake).create("reader", ("read",))
    monkeypatch.setattr("serve.auth._READ_EVERY_S", 0.0)
    services = serve(lake, models)
    with TestClient(build_app(services), raise_server_exceptions=False) as client:
        for path in Path(lake.uri, "_serve/keys").iterdir():
            path.write_text("half a fi")
        assert get(client, token)[0] == 200
        assert get(client, "wl_other")[0] == 401
        monkeypatch.setattr("serve.auth._HOLD_S", 0.0)
        assert get(client, token)[0] == 503, "not for ever: it may have been revoked"
    assert "keys cannot be read" in caplog.text
    services.uploads.close()


def test_a_site_whose_name_leads_to_this_machine_has_no_key_for_it(served: Served) -> None:
    client = TestClient(served.client.app, base_url="http://127.0.0.1:8000", follow_redirects=False)
    client.get(f"/?token={TOKEN}")
    assert client.get("/v1/labelers").status_code == 200
    assert client.get("http://evil.example:8000/v1/labelers").status_code == 401
