"""The data of the explorer's pages."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from lake.commits import Committer
from lake.runs import Run
from lake.tables import Lake, now, to_table
from lake.writer import Writer
from tests.lake.filled import LABELERS, fill
from tests.serve.conftest import InProcess, Served, asking, serve


def get(served: Served, path: str, status: int = 200, **parameters: Any) -> Any:
    answer = served.client.get(path, params=parameters)
    assert answer.status_code == status, answer.text
    return answer.json()


def pages(served: Served, path: str, name: str, **parameters: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    page = get(served, path, **parameters)
    while True:
        rows += page[name]
        if page["next"] is None:
            return rows
        page = get(served, path, **parameters, after=page["next"])


def test_the_overview_counts_what_is_in_the_tables(served: Served) -> None:
    every, one = get(served, "/v1/overview"), get(served, "/v1/overview", labeler=LABELERS[0])
    assert [every[name] for name in ("videos", "triples", "rejections", "failures")] == [4, 40, 40, 0]
    assert [one[name] for name in ("videos", "triples", "rejections")] == [4, 20, 20]
    assert one["datasets"] == [
        {"dataset": name, "videos": 2, "accepted": 10, "rejected": 10} for name in ("one", "two")
    ]
    assert every["actions"] == [{"action": f"action {pts} of Zoë", "triples": 8} for pts in range(5)]
    assert every["distinct_actions"] == 5
    assert [row["labeler_id"] for row in every["labelers"]] == list(LABELERS)


def test_an_overview_is_as_new_as_the_lake(served: Served) -> None:
    before = get(served, "/v1/overview")
    failure = {"uri": "/x", "stage": "probe", "message": "<b>broken</b>", "failed_at": now()}
    Writer(served.filled.lake).append("failures", [failure | {"attempt": attempt} for attempt in range(5)])
    assert get(served, "/v1/overview")["failures"] == before["failures"] + 5
    found = pages(served, "/v1/failures", "failures", limit=2)
    assert sorted(row["attempt"] for row in found) == list(range(5))
    assert {row["message"] for row in found} == {"<b>broken</b>"}


def test_a_condition_keeps_what_sql_says_it_keeps(served: Served) -> None:
    keep = "confidence >= -0.2 -- as a policy would"
    assert get(served, "/v1/kept", keep=keep) == {"accepted": {"of": 40, "kept": 24}, "rejected": {"of": 40, "kept": 0}}
    found = get(served, "/v1/kept", keep=keep, dataset="one", labeler=LABELERS[0], where="video_id > ''")
    assert found["accepted"] == {"of": 10, "kept": 6}
    assert len(pages(served, "/v1/triples", "triples", where=keep)) == 24


def test_histograms_hold_every_score_once(served: Served) -> None:
    (confidence,) = get(served, "/v1/scores")
    assert (confidence["score"], sum(confidence["accepted"]), sum(confidence["rejected"])) == ("confidence", 40, 40)
    assert confidence["low"] < confidence["high"]
    assert get(served, "/v1/scores", dataset="none") == []


@pytest.mark.parametrize("where", ["1=1) UNION SELECT 1 --", "a, b", "nothing > 1", "(", "obs IN (FROM '/etc/passwd')"])
@pytest.mark.parametrize("path", ["/v1/triples", "/v1/rejections", "/v1/scores", "/v1/kept"])
def test_what_is_no_condition_is_refused(served: Served, path: str, where: str) -> None:
    for parameters in (
        ({"where": where, "keep": "true"}, {"keep": where}) if path == "/v1/kept" else ({"where": where},)
    ):
        assert get(served, path, 422, **parameters)["type"] == "urn:worldlake:problem:sql"


@pytest.mark.parametrize("order", ["id", "newest", "unsure"])
def test_every_order_has_every_triple_once(served: Served, order: str) -> None:
    rows = pages(served, "/v1/triples", "triples", order=order, limit=7)
    assert sorted(row["triple_id"] for row in rows) == sorted(served.filled.images)
    keys = {"id": "triple_id", "newest": "labeled_at", "unsure": "confidence"}
    values = [row[keys[order]] for row in rows]
    assert values == sorted(values, reverse=order == "newest")


def test_a_page_brings_its_images(served: Served) -> None:
    for row in get(served, "/v1/triples", images=True, limit=5)["triples"]:
        for name in ("obs", "next_obs"):
            image = served.client.get(f"/v1/triples/{row['triple_id']}/{name}.jpg")
            assert image.headers["content-type"] == "image/jpeg"
            assert base64.b64decode(row[name]) == image.content


def test_rejections_come_with_reasons_and_newest_first(served: Served) -> None:
    rows = pages(served, "/v1/rejections", "rejections", limit=7)
    assert len({row["triple_id"] for row in rows}) == len(rows) == 40
    assert {row["verdict"] for row in rows} == {"rejected"}
    assert pages(served, "/v1/rejections", "rejections", reason="copy") == []


def test_a_video_has_its_pairs_in_the_order_of_their_time(served: Served) -> None:
    videos = pages(served, "/v1/videos", "videos", limit=3)
    assert sorted(video["video_id"] for video in videos) == sorted(served.filled.videos)
    assert [video["uri"] for video in videos] == sorted(video["uri"] for video in videos)
    assert len(pages(served, "/v1/videos", "videos", uri="IT'S 1")) == 1
    video = get(served, f"/v1/videos/{videos[0]['video_id']}")
    assert (video["accepted"], video["rejected"], video["finished_under"]) == (10, 10, list(LABELERS))
    found = pages(served, f"/v1/videos/{video['video_id']}/pairs", "pairs", limit=7)
    assert len({pair["triple_id"] for pair in found}) == 20
    get(served, "/v1/videos/none", 404)


def test_an_upload_that_was_labeled_live_is_shown_too(tmp_path: Path, models: InProcess) -> None:
    lake = fill(Lake(str(tmp_path / "lake")), videos=1).lake
    committer = Committer(lake, LABELERS[0], "live")
    committer.fence()
    row = {"triple_id": "x", "video_id": "upload", "uri": "upload:1", "dataset": "live", "action": "a", "obs_pts": 0}
    committer.commit([lake.write_file(to_table("rejections", [row]), "rejections", "live")])
    services = serve(lake, models)
    with asking(services) as client:
        video = client.get("/v1/videos/upload").json()
    services.uploads.close()
    assert (video["uri"], video["dataset"], video["accepted"], video["rejected"]) == ("upload:1", "live", 0, 1)


def test_a_run_knows_what_it_wrote_and_who_read_it(served: Served) -> None:
    lake = served.filled.lake
    with Run(
        lake, "20990101T000000-train", "train", {"lr": 1}, tables_read={"triples": lake.table("triples").version()}
    ):
        pass
    ids = [run["run_id"] for run in pages(served, "/v1/runs", "runs", limit=1)]
    assert len(ids) == 3
    writer = get(served, "/v1/runs/label-aaaaaaaa")
    assert (writer["triples"], writer["rejections"]) == (20, 20)
    version = lake.table("triples").version()
    assert writer["readers"] == [{"run_id": ids[0], "kind": "train", "version": version, "triples": 20}]
    reader = get(served, f"/v1/runs/{ids[0]}")
    assert {(source["run_id"], source["triples"]) for source in reader["sources"]} == {
        ("label-aaaaaaaa", 20),
        ("label-bbbbbbbb", 20),
    }
    assert reader["config"] == {"lr": 1}
    get(served, "/v1/runs/none", 404)
