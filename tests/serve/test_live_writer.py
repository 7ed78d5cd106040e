"""Live labels in the lake: once, under their own ids, even while others write or forget."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from labeling.policy import Policy
from labeling.run import refuse_other_policy
from lake.commits import Committer
from lake.errors import Refused
from lake.forget import forget
from lake.maintenance import maintain
from lake.retry import Schedule
from lake.runs import Run, find_alive, states
from lake.tables import Lake
from serve.app import build_app
from serve.idempotency import Answers
from serve.keys import Keys
from serve.live_writer import LiveWriter, WriteFailed
from serve.services import Services
from serve.soon import DROPPED
from tests.serve.conftest import InProcess, as_base64, asking, close, serve, writer_of

Pairs = list[tuple[bytes, bytes, str]]


def ask(client: TestClient, pairs: Pairs, write: str | None = "durable", **headers: str) -> Any:
    body = {"pairs": [{"obs": as_base64(obs), "next_obs": as_base64(after)} for obs, after, _ in pairs]}
    return client.post("/v1/label", params={"write": write} if write else {}, json=body, headers=headers)


def until(holds: Callable[[], bool], seconds: float = 120) -> None:
    begun = time.monotonic()
    while not holds():
        assert time.monotonic() - begun < seconds
        time.sleep(0.1)


def rows(lake: Lake, *tables: str) -> list[dict[str, Any]]:
    columns = ["triple_id", "action", "video_id", "uri", "dataset", "obs_pts", "next_pts", "run_id", "policy_id"]
    return [row for name in tables for row in lake.read(name, columns).to_pylist()]


def test_what_is_acknowledged_as_durable_is_in_the_tables_once(
    client: TestClient, lake: Lake, services: Services, pairs: Pairs
) -> None:
    first = ask(client, pairs[:6]).json()
    again = ask(client, pairs[:8]).json()
    assert first["write"] == "durable"
    assert again["labels"][:6] == first["labels"]
    expected = {
        name: sorted(label["triple_id"] for label in again["labels"] if label["verdict"] == verdict)
        for name, verdict in (("triples", "accepted"), ("rejections", "rejected"))
    }
    for name, ids in expected.items():
        assert sorted(row["triple_id"] for row in rows(lake, name)) == ids
    assert expected["triples"]
    for row in rows(lake, "triples"):
        assert (row["obs_pts"], row["next_pts"], row["dataset"]) == (0, 1, "live")
        assert row["uri"].startswith("upload:")
    writer_of(services).close()
    (run,) = [state for state in states(lake) if state.kind == "serve"]
    assert run.counts == {"accepted": len(expected["triples"]), "rejected": len(expected["rejections"])}
    assert run.status == "finished"
    stored = lake.read("triples", ["triple_id", "obs", "next_obs"]).to_pylist()
    assert all(row["obs"][:2] == row["next_obs"][:2] == b"\xff\xd8" for row in stored)


def test_nothing_is_written_unless_request_or_key_ask_for_it(client: TestClient, lake: Lake, pairs: Pairs) -> None:
    assert ask(client, pairs[:2], None).json()["write"] == "no"
    assert rows(lake, "triples", "rejections") == []


def test_a_key_may_write_by_default(lake: Lake, models: InProcess, pairs: Pairs) -> None:
    _, plain = Keys(lake).create("reader", ("label",))
    _, writing = Keys(lake).create("robot", ("label",), write=True)
    services = serve(lake, models)
    with TestClient(build_app(services)) as client:
        assert ask(client, pairs[:1], None, Authorization=f"Bearer {plain}").json()["write"] == "no"
        assert ask(client, pairs[:1], "no", Authorization=f"Bearer {writing}").json()["write"] == "no"
        assert rows(lake, "triples", "rejections") == []
        assert ask(client, pairs[:1], None, Authorization=f"Bearer {writing}").json()["write"] == "durable"
    assert len(rows(lake, "triples", "rejections")) == 1
    close(services)


def test_soon_is_soon(client: TestClient, lake: Lake, pairs: Pairs, services: Services) -> None:
    assert ask(client, pairs[:3], "soon").json()["write"] == "soon"
    assert ask(client, pairs[3:4], "durable").status_code == 200
    assert len(rows(lake, "triples", "rejections")) == 4
    assert services._soon._tasks == {}


def lost(client: TestClient) -> float:
    (line,) = [
        line
        for line in client.get("/metrics").text.splitlines()
        if line.startswith("worldlake_soon_dropped_rows_total")
    ]
    return float(line.split()[1])


def test_soon_outlasts_a_forget_which_durable_is_told_to_wait_for(
    client: TestClient, lake: Lake, services: Services, pairs: Pairs
) -> None:
    before = lost(client)
    ask(client, pairs[:1])
    with Run(lake, "forgets", "forget", {}):
        Committer(lake, services.labeler_id, "forgets", source="live").fence()
        answers = [ask(client, [pair], "soon").status_code for pair in pairs[1:6]]
        assert answers == [200] * 5
        durable = ask(client, pairs[6:7])
        assert (durable.status_code, durable.json()["type"]) == (503, "urn:worldlake:problem:busy")
        assert int(durable.headers["Retry-After"]) > 0
        assert len(rows(lake, "triples", "rejections")) == 1
    until(lambda: len(rows(lake, "triples", "rejections")) == 6)
    assert lost(client) == before


def test_more_than_can_wait_is_refused_before_it_is_acknowledged(
    client: TestClient, lake: Lake, services: Services, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = lost(client)
    monkeypatch.setattr("serve.soon._MOST", 3)
    with monkeypatch.context() as away:
        away.setattr(writer_of(services), "write_now", fails)
        assert ask(client, pairs[:2], "soon").status_code == 200
        refused = ask(client, pairs[2:4], "soon")
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:worldlake:problem:busy")
    until(lambda: len(rows(lake, "triples", "rejections")) == 2)
    assert lost(client) == before


def fails(rows: list[dict[str, Any]]) -> Any:
    raise WriteFailed("the lake cannot be written")


@pytest.mark.parametrize("policy", ["same", "another"])
def test_what_is_lost_is_counted(
    client: TestClient, lake: Lake, services: Services, pairs: Pairs, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    before = lost(client)
    if policy == "another":
        ask(client, pairs[:1])
        writer_of(services).close()
        writer_of(services)._policy = Policy(default={})
    else:
        monkeypatch.setattr("serve.soon._WHILE_SERVING", Schedule((0.1,)))
        monkeypatch.setattr(writer_of(services), "write_now", fails)
    assert ask(client, pairs[1:3], "soon").status_code == 200
    until(lambda: lost(client) == before + 2)


def test_what_waits_is_written_when_the_service_ends(
    lake: Lake, services: Services, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.soon._DRAIN_S", 0.2)
    another = LiveWriter(lake, writer_of(services)._labeler, services.policy)
    monkeypatch.setattr(writer_of(services), "write_now", fails)
    with asking(replace(services, write_here=another.write_now)) as client:
        assert ask(client, pairs[:3], "soon").status_code == 200
        before = lost(client)
        assert rows(lake, "triples", "rejections") == []
    another.close()
    assert len(rows(lake, "triples", "rejections")) == 3
    monkeypatch.setattr("serve.soon._AT_THE_END", Schedule(()))
    with asking(replace(services, write_here=fails)) as client:
        assert ask(client, pairs[3:5], "soon").status_code == 200
    assert DROPPED._value.get() == before + 2


def test_an_idempotency_key_gets_the_same_answer_and_only_for_the_same_request(
    client: TestClient, lake: Lake, pairs: Pairs
) -> None:
    one = ask(client, pairs[:2], **{"Idempotency-Key": "first"})
    assert ask(client, pairs[:2], **{"Idempotency-Key": "first"}).content == one.content
    other = ask(client, pairs[2:4], **{"Idempotency-Key": "first"})
    assert other.status_code == 422
    assert other.json()["type"].endswith("idempotency-key")
    assert ask(client, pairs[2:4], None, **{"Idempotency-Key": "second"}).status_code == 422
    assert len(rows(lake, "triples", "rejections")) == 2


def test_a_writer_that_starts_takes_over_and_the_one_before_goes_on_later(
    lake: Lake, models: InProcess, pairs: Pairs
) -> None:
    first, second = serve(lake, models), serve(lake, models)
    with asking(first) as a, asking(second) as b:
        for client, part in ((a, pairs[:2]), (b, pairs[1:4]), (a, pairs[3:6])):
            assert ask(client, part).status_code == 200
    ids = [row["triple_id"] for row in rows(lake, "triples", "rejections")]
    assert len(ids) == len(set(ids)) == 6
    for services in (first, second):
        close(services)


def test_another_policy_is_refused(client: TestClient, services: Services, lake: Lake, pairs: Pairs) -> None:
    ask(client, pairs[:3])
    with pytest.raises(Refused, match="keeps its policy"):
        refuse_other_policy(lake, services.labeler_id, "0" * 16)
    writer = writer_of(services)
    writer.close()
    writer._policy = Policy(default={})
    answer = ask(client, pairs[3:4])
    assert answer.status_code == 409
    assert "keeps its policy" in answer.json()["detail"]


def test_a_forgotten_upload_stays_away_and_a_service_lets_others_work(
    client: TestClient, lake: Lake, services: Services, pairs: Pairs
) -> None:
    ask(client, pairs[:3])
    assert find_alive(lake, lambda run: True) is None
    maintain(lake)
    forget(lake, rows(lake, "triples")[0]["uri"])
    left = {row["uri"] for row in rows(lake, "triples", "rejections")}
    assert len(left) == 2
    assert ask(client, pairs[:4]).status_code == 200
    assert len(rows(lake, "triples", "rejections")) == 3
    with Run(lake, "forgets", "forget", {}):
        Committer(lake, services.labeler_id, "forgets", source="live").fence()
        answer = ask(client, pairs[4:5])
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:worldlake:problem:busy")
    assert ask(client, pairs[4:5]).status_code == 200


def test_a_run_of_the_same_labeler_and_a_service_write_side_by_side(
    client: TestClient, lake: Lake, services: Services, pairs: Pairs
) -> None:
    ended = threading.Event()

    def label_run() -> None:
        with Run(lake, "batch", "label", {}, services.labeler_id, alone=True):
            committer = Committer(lake, services.labeler_id, "batch")
            committer.fence()
            while not ended.is_set():
                committer.commit([])
                committer.decided([])

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(label_run)
        for pair in pairs[:4]:
            assert ask(client, [pair]).status_code == 200
        ended.set()
        running.result()
    assert len(rows(lake, "triples", "rejections")) == 4


def test_what_failed_as_nobody_expected_is_not_taken_for_written(
    client: TestClient, lake: Lake, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(Committer, "_commit_table", lambda *_: 1 / 0)
        assert ask(client, pairs[:2]).status_code == 500
    assert rows(lake, "triples", "rejections") == []
    assert ask(client, pairs[:2]).status_code == 200
    assert len(rows(lake, "triples", "rejections")) == 2


def test_answers_that_cannot_be_kept_are_a_problem_of_the_moment(
    client: TestClient, lake: Lake, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(Answers, "keep", full)
        answer = ask(client, pairs[:2], **{"Idempotency-Key": "first"})
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:worldlake:problem:busy")
    assert ask(client, pairs[:2], **{"Idempotency-Key": "first"}).status_code == 200
    assert len(rows(lake, "triples", "rejections")) == 2
