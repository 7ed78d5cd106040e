"""Laws of the committer: a pair is decided once, by the last to fence, whatever dies or answers unclearly."""

from __future__ import annotations

import errno
import os
import pickle
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lake import writer
from lake.commits import ORDER, Claim, Committer
from lake.errors import Fenced, Superseded, Unavailable
from lake.retry import Schedule
from lake.tables import DataFile, Lake, now, to_table
from lake.writer import Writer, raise_fences

LABELER = "labeler"
WRITE = DeltaTable.create_write_transaction


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
            files = [file_of(lake, "triples", accepted), file_of(lake, "rejections", rejected)]
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
    calls: list[Any] = []

    def flaky(*args: Any, **options: Any) -> None:
        calls.append(args)
        if lost == "answer" or len(calls) > 1:
            WRITE(*args, **options)
        if len(calls) == 1:
            raise OSError("connection reset")

    monkeypatch.setattr(DeltaTable, "create_write_transaction", flaky)
    committer.commit([file_of(lake, "triples", "abc")])
    assert decided(lake) == ["a", "b", "c"]
    assert len(calls) == (1 if lost == "answer" else 2)


def test_a_fence_between_reload_and_write_stops_the_older(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    older, newer = Committer(lake, LABELER, "older"), Committer(lake, LABELER, "newer")
    older.fence()

    def overtaken(*args: Any, **options: Any) -> None:
        monkeypatch.setattr(DeltaTable, "create_write_transaction", WRITE)
        newer.fence()
        WRITE(*args, **options)

    monkeypatch.setattr(DeltaTable, "create_write_transaction", overtaken)
    with pytest.raises(Superseded):
        older.commit([file_of(lake, "triples", "a")])
    assert decided(lake) == []
    newer.commit([file_of(lake, "rejections", "a")])
    assert decided(lake) == ["a"]


def test_labelers_do_not_disturb_each_other(lake: Lake) -> None:
    one, other = Committer(lake, "one", "run"), Committer(lake, "other", "run")
    one.fence()
    other.fence()
    one.commit([file_of(lake, "triples", "a")])
    other.commit([file_of(lake, "triples", "b")])
    assert sorted(decided(lake)) == ["a", "b"]


def test_a_file_that_vanished_is_never_committed(lake: Lake) -> None:
    committer = Committer(lake, LABELER, "run")
    committer.fence()
    gone = file_of(lake, "triples", "a")
    os.remove(Path(lake.uri, "triples", gone.path))
    with pytest.raises(FileNotFoundError, match="missing"):
        committer.commit([gone])
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
        committer.commit([file])
    assert decided(lake) == []


def test_protocol_statistics_and_schema_are_what_every_reader_takes(lake: Lake) -> None:
    committer = Committer(lake, LABELER, "run")
    committer.fence()
    committer.commit([file_of(lake, "triples", "ab")])
    for name in ORDER:
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
    monkeypatch.setattr(writer, "COMMITS", Schedule((0.0, 0.0)))

    def down(*args: object, **options: object) -> None:
        raise CommitFailedError("no answer")

    monkeypatch.setattr(DeltaTable, "create_write_transaction", down)
    with pytest.raises(CommitFailedError):
        committer.commit([file_of(lake, "triples", "a")])


@pytest.mark.parametrize("rivals", [2, 3])
def test_rivals_that_start_at_once_have_epochs_of_their_own(
    lake: Lake, rivals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    barrier = threading.Barrier(rivals)

    def simultaneous(*args: Any, **options: Any) -> None:
        # They look at the epochs of a table at the same moment, and write at the same moment too.
        with suppress(threading.BrokenBarrierError):
            barrier.wait(timeout=1)
        WRITE(*args, **options)

    committers = [Committer(lake, LABELER, f"run-{number}") for number in range(rivals)]
    monkeypatch.setattr(DeltaTable, "create_write_transaction", simultaneous)
    with ThreadPoolExecutor(rivals) as pool:
        list(pool.map(Committer.fence, committers))
    monkeypatch.setattr(DeltaTable, "create_write_transaction", WRITE)
    committers.sort(key=lambda committer: committer.epoch)
    assert len({committer.epoch for committer in committers}) == rivals
    newest = committers[-1]
    for number, committer in enumerate(committers * 2):
        files = [file_of(lake, "triples", [f"t{number}"]), file_of(lake, "rejections", [f"r{number}"])]
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
    calls: list[Any] = []

    def flaky(*args: Any, **options: Any) -> None:
        calls.append(args)
        WRITE(*args, **options)
        if len(calls) == 1:
            raise OSError("connection reset")

    monkeypatch.setattr(DeltaTable, "create_write_transaction", flaky)
    committer.fence()
    assert committer.epoch == 2
    committer.commit([file_of(lake, "triples", "a")])
    assert decided(lake) == ["a"]


def test_of_two_verdicts_about_a_pair_the_first_counts_whatever_its_table(lake: Lake) -> None:
    committer = Committer(lake, LABELER, "run")
    committer.fence()
    files = [file_of(lake, "rejections", "a"), file_of(lake, "triples", "ab"), file_of(lake, "rejections", "b")]
    committed = committer.commit(files)
    assert {name: [id_ for file in made for id_ in file.triple_ids] for name, made in committed.items()} == {
        "rejections": ["a"], "triples": ["b"],
    }  # fmt: skip
    assert lake.read("rejections", ["triple_id"])["triple_id"].to_pylist() == ["a"]
    assert lake.read("triples", ["triple_id"])["triple_id"].to_pylist() == ["b"]


def test_a_fence_of_the_lake_ends_every_writer_and_whatever_else_was_open(lake: Lake) -> None:
    Writer(lake).append("videos", [{"video_id": "v", "uri": "/v"}])
    committer, ingest = Committer(lake, LABELER, "run"), Writer(lake)
    committer.fence()
    stale = {name: lake.table(name) for name in ("videos", "triples")}
    raise_fences(lake)
    with pytest.raises(Fenced, match="run the command again"):
        committer.commit([file_of(lake, "triples", "a")])
    for write in (
        lambda: ingest.append("videos", [{"video_id": "w", "uri": "/w"}]),
        lambda: ingest.write("videos", [], replacing=("video_id", ["v"])),
    ):
        with pytest.raises(Fenced):
            write()
    # Also a program that knows nothing of fences, from a handle that it opened before.
    with pytest.raises(CommitFailedError, match="Metadata changed"):
        write_deltalake(stale["videos"], to_table("videos", [{"video_id": "x", "uri": "/x"}]), mode="append")
    assert lake.read("videos", ["video_id"])["video_id"].to_pylist() == ["v"]
    assert decided(lake) == []
    Writer(lake).append("videos", [{"video_id": "w", "uri": "/w"}])
    committer.fence()
    committer.commit([file_of(lake, "triples", "a")])
    assert decided(lake) == ["a"]


def test_a_fence_between_reload_and_write_stops_a_writer(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Writer(lake)

    def overtaken(*args: Any, **options: Any) -> None:
        monkeypatch.setattr(DeltaTable, "create_write_transaction", WRITE)
        raise_fences(lake)
        WRITE(*args, **options)

    monkeypatch.setattr(DeltaTable, "create_write_transaction", overtaken)
    with pytest.raises(Fenced):
        opened.append("videos", [{"video_id": "v", "uri": "/v"}])
    assert lake.dataset("videos").count_rows() == 0


def test_an_append_whose_answer_was_lost_is_there_once(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[str] = []

    def flaky(*args: Any, **options: Any) -> None:
        WRITE(*args, **options)
        if len(lost) < 2:
            lost.append("answer")
            raise OSError("connection reset")

    monkeypatch.setattr(DeltaTable, "create_write_transaction", flaky)
    opened = Writer(lake)
    for id_ in "vw":
        opened.append("videos", [{"video_id": id_, "uri": f"/{id_}"}])
    assert sorted(lake.read("videos", ["video_id"])["video_id"].to_pylist()) == ["v", "w"]


@pytest.mark.parametrize("kind", ["errno", "text"])
def test_what_no_retry_can_help_ends_a_commit_at_once(lake: Lake, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    retries: list[str] = []
    committer = Committer(lake, LABELER, "run", retries.append)
    committer.fence()
    errors = {
        "errno": OSError(errno.ENOSPC, "No space left on device"),
        "text": DeltaError("Generic LocalFileSystem error: No space left on device (os error 28)"),
    }

    def fails(*args: object, **options: object) -> None:
        raise errors[kind]

    monkeypatch.setattr(DeltaTable, "create_write_transaction", fails)
    with pytest.raises(Unavailable, match="free space"):
        committer.commit([file_of(lake, "triples", "a")])
    assert retries == []


def test_a_name_belongs_to_the_process_that_claimed_it_last(lake: Lake) -> None:
    first = Claim(lake, "train/one")
    first.check()
    Claim(lake, "train/another")
    first.check()
    second = pickle.loads(pickle.dumps(Claim(lake, "train/one")))
    second.check()
    assert second.epoch == first.epoch + 1
    with pytest.raises(Superseded, match="train/one"):
        first.check()
    raise_fences(lake)
    with pytest.raises(Fenced):
        second.check()


def test_processes_that_claim_a_name_at_once_have_it_one_after_the_other(lake: Lake) -> None:
    with ThreadPoolExecutor(4) as pool:
        claims = sorted(pool.map(lambda _: Claim(lake, "train/one"), range(4)), key=lambda claim: claim.epoch)
    assert [claim.epoch for claim in claims] == [1, 2, 3, 4]
    claims[-1].check()
    for claim in claims[:-1]:
        with pytest.raises(Superseded):
            claim.check()


@pytest.mark.parametrize("switch", ["on", "off"])
def test_a_commit_is_on_the_disk_before_it_is_acknowledged(
    tmp_path: Path, switch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLDLAKE_FSYNC", switch)
    lake = Lake(str(tmp_path))
    lake.create()
    flushed: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{handle}"))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    Writer(lake).append("videos", [{"video_id": "v", "uri": "/v"}])
    table = f"{lake.uri}/videos"
    log, data = f"{table}/_delta_log", next(path for path in flushed if path.endswith(".unfinished")) if flushed else ""
    if switch == "off":
        assert flushed == []
        return
    # The rows, the name of their file, and then the commit that names it.
    order = [data, str(Path(data).parent), f"{log}/{1:020}.json", log]
    assert [path for path in flushed if path in order] == order
