from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lake.errors import Unavailable
from tests.serve.conftest import LIMITS, Served


def pages(served: Served, **parameters: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    after: dict[str, str] = {}
    while True:
        answer = served.client.get("/v1/triples", params={**parameters, **after})
        assert answer.status_code == 200, answer.text
        rows += answer.json()["triples"]
        if answer.json()["next"] is None:
            return rows
        after = {"after": answer.json()["next"]}


@pytest.mark.parametrize("limit", [1, 7, 20])
def test_pages_hold_every_triple_once(served: Served, limit: int) -> None:
    ids = [row["triple_id"] for row in pages(served, limit=limit)]
    assert ids == sorted(served.filled.images)


def test_filters(served: Served) -> None:
    everything = pages(served)
    for column, name in (("dataset", "dataset"), ("labeler_id", "labeler"), ("video_id", "video")):
        value = everything[0][column]
        found = pages(served, **{name: value})
        assert found == [row for row in everything if row[column] == value]
        assert 0 < len(found) < len(everything)
    part = everything[0]["action"][1:].upper()
    assert pages(served, action=part) == [row for row in everything if part.lower() in row["action"].lower()]
    for attempt in ("' OR 1=1 --", "%", "'; DROP TABLE triples; --", "$limit"):
        assert pages(served, action=attempt) == []


def test_a_triple_and_its_images(served: Served) -> None:
    for triple_id, images in list(served.filled.images.items())[:3]:
        row = served.client.get(f"/v1/triples/{triple_id}").json()
        assert row["triple_id"] == triple_id
        for name, content in zip(("obs.jpg", "next_obs.jpg"), images, strict=True):
            answer = served.client.get(f"/v1/triples/{triple_id}/{name}")
            assert answer.content == content
            assert answer.headers["content-type"] == "image/jpeg"
            assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("00000000-0000-0000-0000-000000000000", 404),
        ("00000000-0000-0000-0000-000000000000/obs.jpg", 404),
        ("..%2f..%2fetc%2fpasswd", 404),
        ("../../etc/passwd", 404),
        ("' OR 1=1 --", 422),
        ("{known}/../../../etc/passwd", 404),
        ("{known}/etc.jpg", 404),
        ("{known}/obs.jpg%00", 404),
    ],
)
def test_other_ids_and_names_are_not_found(served: Served, path: str, status: int) -> None:
    known = next(iter(served.filled.images))
    answer = served.client.get(f"/v1/triples/{path.format(known=known)}")
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


def test_sql(served: Served) -> None:
    answer = served.client.post(
        "/v1/sql", json={"sql": "SELECT dataset, count(*) AS n FROM triples GROUP BY 1 ORDER BY 1"}
    )
    assert answer.json() == {"columns": ["dataset", "n"], "rows": [["one", 20], ["two", 20]], "truncated": False}
    many = served.client.post("/v1/sql", json={"sql": "SELECT * FROM range(1000)"}).json()
    assert (len(many["rows"]), many["truncated"]) == (LIMITS.sql_rows, True)
    odd = served.client.post(
        "/v1/sql", json={"sql": "SELECT 'nan'::float AS a, DATE '2026-01-02' AS b, obs FROM triples LIMIT 1"}
    )
    assert odd.json()["rows"][0][:2] == [None, "2026-01-02"]
    kinds = served.client.post("/v1/sql", json={"sql": "SELECT MAP {'a': 1} AS m, INTERVAL '1 day 2 seconds' AS i"})
    assert kinds.json()["rows"] == [[{"a": 1}, "P1DT2S"]]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("DELETE FROM triples", "exactly one SELECT"),
        ("SELECT 1; SELECT 2", "exactly one SELECT"),
        ("SELECT * FROM read_csv('/etc/passwd')", "only the tables"),
        ("SELECT * FROM '/etc/passwd'", ""),
        ("EXPLAIN ANALYZE SELECT 1", "exactly one SELECT"),
        ("SELECT 'infinity'::TIMESTAMP", "infinite"),
        ("SELECT 5::UHUGEINT", "has the type UHUGEINT"),
        ("SELECT levenshtein(repeat('a', 120000), repeat('b', 120000))", "exceeded 3 s"),
        ("SELECT * FROM read_text('/etc/passwd')", "only the tables"),
        ("SELECT * FROM glob('/*')", "only the tables"),
        ("SELECT * FROM read_parquet('http://169.254.169.254/latest')", "only the tables"),
        ("ATTACH '/tmp/x.db'", "exactly one SELECT"),
        ("COPY triples TO '/tmp/stolen.csv'", "exactly one SELECT"),
        ("INSTALL httpfs", "exactly one SELECT"),
        ("SET enable_external_access = true", "exactly one SELECT"),
        ("PRAGMA database_list", "exactly one SELECT"),
        ("CALL pragma_version()", "exactly one SELECT"),
        ("SELECT nothing FROM triples", "nothing"),
        ("SELEC", "syntax"),
        ("SELECT 1 AS a, 2 AS a", "one name"),
        ("SELECT count(*) FROM range(1000000000000)", "exceeded 3 s"),
        ("SELECT repeat('x', 1000000) FROM range(40)", "more than 8,388,608 bytes"),
        ("SELECT list_resize([range = 0], 1700000, true) FROM range(1)", "more than 8,388,608 bytes"),
        ("SELECT repeat('x', 1000000) FROM range(100000)", "more memory"),
    ],
)
def test_sql_that_is_refused(served: Served, sql: str, message: str) -> None:
    answer = served.client.post("/v1/sql", json={"sql": sql})
    assert answer.status_code == 422, answer.text
    assert message in answer.json()["detail"]
    assert answer.json()["type"] == "urn:worldlake:problem:sql"


def test_a_condition_takes_no_more_memory_than_a_query_may(served: Served) -> None:
    greedy = "length(repeat('x', 2000000000)) > 0"
    for path, given in (("triples", {"where": greedy}), ("scores", {"where": greedy}), ("kept", {"keep": greedy})):
        answer = served.client.get(f"/v1/{path}", params=given)
        assert answer.status_code == 422, answer.text
        assert "more memory" in answer.json()["detail"]
    assert (
        len(served.client.get("/v1/triples", params={"where": "length(action) > 0"}).json()["triples"]) == LIMITS.rows
    )


def test_labelers(served: Served) -> None:
    found = served.client.get("/v1/labelers").json()
    assert [(row["labeler_id"], row["triples"], row["rejections"]) for row in found] == [
        ("aaaaaaaa00000001", 20, 20),
        ("bbbbbbbb00000002", 20, 20),
    ]


def test_a_lake_that_is_away_is_a_problem_of_the_moment(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise Unavailable("the store does not answer")

    monkeypatch.setattr("serve.query_worker.query", away)
    answer = served.client.get("/v1/labelers")
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:worldlake:problem:busy")
    assert "Retry-After" in answer.headers


def test_a_lake_that_goes_away_is_one_for_queries_in_other_words_too(served: Served) -> None:
    lake = Path(served.filled.lake.uri)
    lake.rename(moved := lake.with_name("moved"))
    try:
        answer = served.client.post("/v1/sql", json={"sql": "SELECT 1"})
    finally:
        moved.rename(lake)
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:worldlake:problem:busy")
    assert served.client.post("/v1/sql", json={"sql": "SELECT 1"}).status_code == 200
