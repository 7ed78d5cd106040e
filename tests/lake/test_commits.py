"""Laws of the committer: a pair is decided once, by whoever fenced last, whatever dies or answers unclearly."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from deltalake.exceptions import CommitFailedError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lake import commits
from lake.commits import TABLES, Committer
from lake.errors import Superseded
from lake.tables import DataFile, Lake, now, to_table

LABELER = "labeler"


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    made = Lake(str(tmp_path))
    made.create()
    return made


def file_of(lake: Lake, name: str, ids: Sequence[str]) -> DataFile:
    rows = [{"triple_id": id_, "video_id": "v", "labeler_id": LABELER, "labeled_at": now()} for id_ in ids]
    return lake.write_file(to_table(name, rows), name, "run")


def decided(lake: Lake) -> list[str]:
    return [
        id_ for name in ("triples", "rejections") for id_ in lake.read(name, ["triple_id"])["triple_id"].to_pylist()
    ]


pairs = st.lists(st.sampled_from("abcdefgh"), max_size=4)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.integers(0, 2)),
        st.tuples(st.just("commit"), st.integers(0, 2), pairs, pairs),
    ),
    max_size=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_only_the_last_that_fenced_commits_and_no_pair_is_decided_twice(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[object, ...]]
) -> None:
    lake = Lake(str(tmp_path_factory.mktemp("lake")))
    lake.create()
    committers: dict[object, Committer] = {}
    current: object = None
    expected: set[str] = set()
    for step in steps:
        who = step[1]
        if step[0] == "start":
            committers[who] = Committer(lake, LABELER, "run")
            committers[who].fence()
            assert set(committers[who].decided(["v"]).get("v", [])) == expected
            current = who
        elif who in committers:
            _, _, accepted, rejected = step
            assert isinstance(accepted, list)
            assert isinstance(rejected, list)
            files = {
                "triples": [file_of(lake, "triples", accepted)],
                "rejections": [file_of(lake, "rejections", rejected)],
            }
            fresh = set(accepted) | set(rejected)
            if who == current or fresh <= committers[who]._decided:
                committers[who].commit(files)
                expected |= fresh if who == current else set()
            else:
                with pytest.raises(Superseded):
                    committers[who].commit(files)
    assert sorted(decided(lake)) == sorted(expected)


@pytest.mark.parametrize("lost", ["request", "answer"])
def test_an_unclear_answer_is_looked_up(lake: Lake, lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    committer = Committer(lake, LABELER, "run")
    committer.fence()
    real, calls = committer._write, []

    def flaky(*args: object) -> None:
        calls.append(args)
        if lost == "answer" or len(calls) > 1:
            real(*args)  # type: ignore[arg-type]
        if len(calls) == 1:
            raise OSError("connection reset")

    monkeypatch.setattr(committer, "_write", flaky)
    committer.commit({"triples": [file_of(lake, "triples", "abc")]})
    assert decided(lake) == ["a", "b", "c"]
    assert len(calls) == (1 if lost == "answer" else 2)


def test_a_fence_between_reload_and_write_stops_the_older(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    older, newer = Committer(lake, LABELER, "older"), Committer(lake, LABELER, "newer")
    older.fence()
    real = older._write

    def overtaken(*args: object) -> None:
        newer.fence()
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(older, "_write", overtaken)
    with pytest.raises(Superseded):
        older.commit({"triples": [file_of(lake, "triples", "a")]})
    assert decided(lake) == []
    newer.commit({"rejections": [file_of(lake, "rejections", "a")]})
    assert decided(lake) == ["a"]


def test_labelers_do_not_disturb_each_other(lake: Lake) -> None:
    one, other = Committer(lake, "one", "run"), Committer(lake, "other", "run")
    one.fence()
    other.fence()
    one.commit({"triples": [file_of(lake, "triples", "a")]})
    other.commit({"triples": [file_of(lake, "triples", "b")]})
    assert sorted(decided(lake)) == ["a", "b"]


def test_a_file_that_vanished_or_is_too_old_is_never_committed(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    committer = Committer(lake, LABELER, "run")
    committer.fence()
    gone = file_of(lake, "triples", "a")
    os.remove(Path(lake.uri, "triples", gone.path))
    with pytest.raises(FileNotFoundError, match="missing"):
        committer.commit({"triples": [gone]})
    old = file_of(lake, "triples", "b")
    monkeypatch.setattr(commits, "now", lambda: old.written_at + commits._MAX_FILE_AGE * 2)
    with pytest.raises(FileNotFoundError, match="older"):
        committer.commit({"triples": [old]})
    assert decided(lake) == []


@pytest.mark.parametrize("change", ["half", "empty", "longer"])
def test_a_file_of_another_size_than_its_worker_wrote_is_never_committed(lake: Lake, change: str) -> None:
    committer = Committer(lake, LABELER, "run")
    committer.fence()
    file = file_of(lake, "triples", "abc")
    path = Path(lake.uri, "triples", file.path)
    content = path.read_bytes()
    path.write_bytes({"half": content[: len(content) // 2], "empty": b"", "longer": content + b"\0"}[change])
    with pytest.raises(FileNotFoundError, match=f"not of {len(content)} bytes"):
        committer.commit({"triples": [file]})
    assert decided(lake) == []


def test_protocol_statistics_and_schema_are_what_every_reader_takes(lake: Lake) -> None:
    committer = Committer(lake, LABELER, "run")
    committer.fence()
    committer.commit({"triples": [file_of(lake, "triples", "ab")]})
    for name in TABLES:
        protocol = lake.table(name).protocol()
        assert (protocol.min_reader_version, protocol.min_writer_version) == (1, 2)
    added = lake.table("triples").get_add_actions(flatten=True)
    columns = added.schema.names
    assert "min.triple_id" in columns
    assert "max.labeled_at" in columns
    assert not any(column.endswith((".obs", ".next_obs")) for column in columns)


def test_rows_of_another_schema_are_refused(lake: Lake) -> None:
    with pytest.raises(ValueError, match="columns"):
        lake.write_file(to_table("progress", [{"video_id": "v"}]), "triples", "run")
    with pytest.raises(ValueError, match="no column"):
        to_table("progress", [{"video": "v"}])


def test_a_committer_that_cannot_reach_the_store_gives_up_in_the_end(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    committer = Committer(lake, LABELER, "run")
    committer.fence()
    monkeypatch.setattr(commits, "_RETRY_WAITS_S", (0.0, 0.0))

    def down(*args: object) -> None:
        raise CommitFailedError("no answer")

    monkeypatch.setattr(committer, "_write", down)
    with pytest.raises(CommitFailedError):
        committer.commit({"triples": [file_of(lake, "triples", "a")]})


class Simultaneous(Committer):
    """Looks at the epochs of a table at the same moment as its rivals, and writes at the same moment too."""

    barrier: threading.Barrier

    def _write(self, *args: Any) -> None:
        with suppress(threading.BrokenBarrierError):
            self.barrier.wait(timeout=1)
        super()._write(*args)


@pytest.mark.parametrize("rivals", [2, 3])
def test_rivals_that_start_at_once_have_epochs_of_their_own(lake: Lake, rivals: int) -> None:
    committers = [Simultaneous(lake, LABELER, f"run-{number}") for number in range(rivals)]
    Simultaneous.barrier = threading.Barrier(rivals)
    with ThreadPoolExecutor(rivals) as pool:
        list(pool.map(Committer.fence, committers))
    committers.sort(key=lambda committer: committer.epoch)
    assert len({committer.epoch for committer in committers}) == rivals
    newest = committers[-1]
    for number, committer in enumerate(committers * 2):
        files = {"triples": [file_of(lake, "triples", [f"t{number}"])]}
        files["rejections"] = [file_of(lake, "rejections", [f"r{number}"])]
        if committer is newest:
            committer.commit(files)
        else:
            with pytest.raises(Superseded):
                committer.commit(files)
    # All that the newest committed is there once, and nothing of the others.
    landed = [f"{table}{number}" for table in "tr" for number in (rivals - 1, 2 * rivals - 1)]
    assert sorted(decided(lake)) == sorted(landed)


def test_a_fence_whose_answer_was_lost_is_raised_again(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    committer = Committer(lake, LABELER, "run")
    real, calls = committer._write, []

    def flaky(*args: Any) -> None:
        calls.append(args)
        real(*args)
        if len(calls) == 1:
            raise OSError("connection reset")

    monkeypatch.setattr(committer, "_write", flaky)
    committer.fence()
    assert committer.epoch == 2
    committer.commit({"triples": [file_of(lake, "triples", "a")]})
    assert decided(lake) == ["a"]
