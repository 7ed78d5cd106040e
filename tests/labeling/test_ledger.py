"""Laws of the books: whatever the order of the reports, a video is finished exactly when its sum balances."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from labeling.ledger import Ledger, Report

outcomes = st.lists(st.sampled_from(["accepted", "rejected", "failed"]), max_size=8)


def failure(video: str, scope: str, triple_id: str | None = None) -> dict[str, Any]:
    return {"video_id": video, "scope": scope, "triple_id": triple_id, "stage": "s", "start_pts": 1, "end_pts": 2}


@given(st.dictionaries(st.sampled_from("uvw"), outcomes, min_size=1), st.integers(0, 3), st.data())
def test_sums_balance_in_any_order_and_with_repeats(
    videos: dict[str, list[str]], before: int, data: st.DataObject
) -> None:
    ledger = Ledger()
    reports = []
    for video, pairs in videos.items():
        ledger.open(video, decided_before=before)
        for number, outcome in enumerate(pairs):
            id_ = f"{video}{number}"
            reports.append(
                {
                    "accepted": Report(accepted=[(video, id_)]),
                    "rejected": Report(rejected=[(video, id_)]),
                    "failed": Report(failures=[failure(video, "pair", id_)]),
                }[outcome]
            )
        reports.append(Report(ends=[(video, len(pairs) + before)]))
    repeated = data.draw(st.lists(st.sampled_from(reports), max_size=3))
    for report in data.draw(st.permutations([*reports, *repeated])):
        ledger.add(report)
    _, failures, finished = ledger.take()
    assert ledger.unfinished == []
    assert {row["video_id"] for row in finished} == set(videos)
    for row in finished:
        pairs = videos[row["video_id"]]
        assert row["sampled"] == row["accepted"] + row["rejected"] + row["failed"] + row["decided_before"]
        assert [row[name] for name in ("accepted", "rejected", "failed")] == [
            pairs.count(name) for name in ("accepted", "rejected", "failed")
        ]
    assert len(failures) == sum(pairs.count("failed") for pairs in videos.values())


def test_a_video_with_a_pair_missing_stays_open() -> None:
    ledger = Ledger()
    ledger.open("v", decided_before=1)
    ledger.add(Report(accepted=[("v", "a")], ends=[("v", 3)]))
    assert ledger.unfinished == ["v"]
    assert ledger.decided("v") == ["a"]
    ledger.add(Report(rejected=[("v", "b")]))
    assert ledger.unfinished == []


def test_a_failed_video_is_told_once_and_never_finishes() -> None:
    ledger = Ledger()
    ledger.open("v", decided_before=0)
    ledger.add(Report(failures=[failure("v", "span")]))
    ledger.add(Report(failures=[failure("v", "video"), failure("v", "video")], ends=[("v", 0)]))
    _, failures, finished = ledger.take()
    assert [row["scope"] for row in failures] == ["video"]
    assert finished == []
    assert ledger.unfinished == []


def test_a_pair_that_failed_and_was_decided_in_a_second_round_did_not_fail() -> None:
    ledger = Ledger()
    ledger.open("v", decided_before=0)
    ledger.add(Report(failures=[failure("v", "pair", "a")]))
    ledger.add(Report(accepted=[("v", "a")], ends=[("v", 1)]))
    _, failures, finished = ledger.take()
    assert failures == []
    assert finished[0]["failed"] == 0
