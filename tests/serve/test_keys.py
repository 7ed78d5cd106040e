from __future__ import annotations

import datetime as dt
import json
import logging
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

from lake.errors import Refused
from lake.tables import Lake
from serve.app import build_app
from serve.guard import Guard
from serve.keys import SCOPES, Bucket, Keys, find
from tests.conftest import Bucket as StoreBucket
from tests.serve.conftest import InProcess, serve
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


def test_a_lake_without_keys_is_open_to_its_own_machine_alone(
    lake: Lake, models: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = serve(lake, models)
    monkeypatch.setattr("serve.guard._READ_EVERY_S", 0)
    with TestClient(build_app(services)) as client:
        assert get(client, None) == (200, "")
        _, token = Keys(lake).create("first", ("read",))
        assert get(client, None) == (401, "no-key")
        assert get(client, token) == (200, "")
        Keys(lake).revoke("first")
        assert get(client, None) == (200, "")
    services.uploads.close()
    services = replace(services, guard=Guard(Keys(lake), open_as=()))
    with TestClient(build_app(services)) as client:
        assert get(client, None) == (401, "no-key")


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
    assert token not in caplog.text
    assert key.digest not in caplog.text
    assert key.created_at <= dt.datetime.now(dt.UTC)


def test_keys_that_cannot_be_read_for_a_while_hold(
    lake: Lake, models: InProcess, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, token = Keys(lake).create("reader", ("read",))
    monkeypatch.setattr("serve.guard._READ_EVERY_S", 0.0)
    services = serve(lake, models)
    with TestClient(build_app(services), raise_server_exceptions=False) as client:
        for path in Path(lake.uri, "_serve/keys").iterdir():
            path.write_text("half a fi")
        assert get(client, token)[0] == 200
        assert get(client, "wl_other")[0] == 401
        monkeypatch.setattr("serve.guard._HOLD_S", 0.0)
        assert get(client, token)[0] == 503, "not for ever: it may have been revoked"
    assert "keys cannot be read" in caplog.text
    services.uploads.close()


def test_a_site_whose_name_leads_to_this_machine_may_not_read_an_open_lake(lake: Lake, models: InProcess) -> None:
    services = serve(lake, models)
    with TestClient(build_app(services)) as client:
        for host in ("127.0.0.1:8000", "localhost", "LOCALHOST:8000", "[::1]:8000"):
            assert client.get("/v1/labelers", headers={"Host": host}).status_code == 200
        for host in ("evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example:80", "["):
            answer = client.get("/v1/labelers", headers={"Host": host})
            assert (answer.status_code, answer.json()["type"]) == (403, "urn:worldlake:problem:host")
            assert "worldlake keys create" in answer.json()["detail"]
    services.uploads.close()
