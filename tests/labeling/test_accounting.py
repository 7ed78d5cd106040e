"""Laws of the accounting: whatever the order of the reports, a video is finished exactly when its sum balances."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from labeling.accounting import Accounts, End, Report
from lake.failures import Failure, Scope

outcomes = st.lists(st.sampled_from(["accepted", "rejected", "failed", "span"]), max_size=8)


def failure(video: str, scope: Scope, triple_id: str | None = None, start_pts: int | None = None) -> Failure:
    return Failure(
        scope=scope, stage="s", error_type="E", message="m", video_id=video, triple_id=triple_id, start_pts=start_pts
    )


def told(failures: list[Failure], video: str) -> Counter[str]:
    return Counter(one.scope for one in failures if one.video_id == video)


@given(st.dictionaries(st.sampled_from("uvw"), outcomes, min_size=1), st.integers(0, 3), st.data())
def test_sums_balance_and_nothing_is_left_untold_in_any_order_and_with_repeats(
    videos: dict[str, list[str]], before: int, data: st.DataObject
) -> None:
    accounts = Accounts()
    reports = []
    lost = data.draw(st.sets(st.sampled_from(sorted(videos))))
    for video, parts in videos.items():
        accounts.open(video, decided_before=before)
        for number, outcome in enumerate(parts):
            id_ = f"{video}{number}"
            reports.append(
                {
                    "accepted": Report(accepted=[(video, id_)]),
                    "rejected": Report(rejected=[(video, id_)]),
                    "failed": Report(failures=[failure(video, "pair", id_)]),
                    "span": Report(failures=[failure(video, "span", start_pts=number)]),
                }[outcome]
            )
        spans = parts.count("span")
        reports.append(
            Report(failures=[failure(video, "video")])
            if video in lost
            else Report(ends=[End(video, len(parts) - spans + before, spans, f"of {video}")])
        )
    repeated = data.draw(st.lists(st.sampled_from(reports), max_size=3))
    failures, finished = [], []
    for report in data.draw(st.permutations([*reports, *repeated])):
        accounts.add(report)
        taken = accounts.take()
        failures += taken[1]
        finished += taken[2]
    assert accounts.unfinished == []
    assert sorted(row["video_id"] for row in finished) == sorted(videos.keys() - lost)
    for row in finished:
        parts = videos[row["video_id"]]
        assert row["note"] == f"of {row['video_id']}"
        assert row["sampled"] == row["accepted"] + row["rejected"] + row["failed"] + row["decided_before"]
        assert [row[name] for name in ("accepted", "rejected", "failed")] == [
            parts.count(name) for name in ("accepted", "rejected", "failed")
        ]
    for video, parts in videos.items():
        assert told(failures, video) == Counter(
            pair=parts.count("failed"), span=parts.count("span"), video=int(video in lost)
        )
    assert accounts.counts["failed"] == sum(parts.count("failed") for parts in videos.values())


def test_a_video_with_a_pair_missing_stays_open() -> None:
    accounts = Accounts()
    accounts.open("v", decided_before=1)
    accounts.add(Report(accepted=[("v", "a")], ends=[End("v", 3, 0)]))
    assert accounts.unfinished == ["v"]
    assert accounts.decided("v") == ["a"]
    accounts.add(Report(rejected=[("v", "b")]))
    assert accounts.unfinished == []


def test_a_failed_video_is_told_once_and_never_finishes() -> None:
    accounts = Accounts()
    accounts.open("v", decided_before=0)
    accounts.add(Report(failures=[failure("v", "span")]))
    accounts.add(Report(failures=[failure("v", "video"), failure("v", "video")], ends=[End("v", 0, 0)]))
    _, failures, finished = accounts.take()
    assert [one.scope for one in failures] == ["video", "span"]
    assert finished == []
    assert accounts.unfinished == []


def test_a_pair_that_failed_and_was_decided_in_a_second_round_did_not_fail() -> None:
    accounts = Accounts()
    accounts.open("v", decided_before=0)
    accounts.add(Report(failures=[failure("v", "pair", "a")]))
    accounts.add(Report(accepted=[("v", "a")], ends=[End("v", 1, 0)]))
    _, failures, finished = accounts.take()
    assert failures == []
    assert finished[0]["failed"] == 0
