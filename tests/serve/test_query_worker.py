"""Queries from requests: nothing is written, and one that hangs costs only its sender."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lake.isolation import Isolated
from lake.schemas import TABLES
from lake.tables import Lake
from serve import queries, query_worker
from serve.isolated_pool import NoneFree, Processes
from serve.problems import Problem
from serve.queries import Reading
from tests.lake import statements
from tests.lake.filled import fill
from tests.serve.conftest import LIMITS, Served

# DuckDB cannot be interrupted in it: some fifty seconds.
HANGS = "SELECT levenshtein(repeat('a', 120000), repeat('b', 120000))"
LATEST_S = LIMITS.sql_seconds + queries._LATE_S + 20


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return fill(Lake(str(tmp_path_factory.mktemp("queries") / "lake"))).lake


@asynccontextmanager
async def started(lake: Lake) -> AsyncIterator[Reading]:
    made = Reading(lake, LIMITS)
    await made._processes.start()
    try:
        yield made
    finally:
        made.close()


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 120))


async def ask(asked: Reading, statement: str, asker: str = "") -> list[dict[str, Any]]:
    return await asked.rows(statement, {}, asker=asker)


@pytest.mark.slow
def test_no_statement_of_any_type_is_answered_or_leaves_a_file(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    versions = [served.filled.lake.table(name).version() for name in TABLES]
    for text in statements.refused():
        answer = served.client.post("/v1/sql", json={"sql": text})
        assert (answer.status_code, answer.json()["type"]) == (422, "urn:worldlake:problem:sql"), text
    for text in statements.READING:
        assert served.client.post("/v1/sql", json={"sql": text}).status_code == 200, text
    assert list(tmp_path.rglob("*")) == []
    assert [served.filled.lake.table(name).version() for name in TABLES] == versions


@pytest.fixture(scope="module")
def process(lake: Lake) -> Iterator[Isolated]:
    with Isolated(10, queries._ADDRESSES, first=partial(query_worker.prepare, lake.uri, lake.storage)) as made:
        made.start()
        yield made


def _write(path: str) -> None:
    with Path(path).open("wb", buffering=0) as out:
        out.write(b"x")


def test_the_process_of_a_query_can_write_nowhere(process: Isolated, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File too large"):
        process.call(_write, str(tmp_path / "absolute"))
    with pytest.raises(FileNotFoundError):
        process.call(_write, "relative")
    with pytest.raises(FileNotFoundError):
        process.call(os.mkdir, ".tmp")
    assert process.call(os.listdir, ".") == []


def test_the_process_of_a_query_may_compute_for_so_long(process: Isolated, lake: Lake) -> None:
    question = query_worker.Question("SELECT 1 AS a", {}, 10, 1000, 5.0)
    assert process.call(query_worker.read_apart, lake.uri, lake.storage, question).rows == [{"a": 1}]
    soft, _ = process.call(resource.getrlimit, resource.RLIMIT_CPU)
    assert 5 <= soft <= 5 * 100


@pytest.mark.slow
def test_a_query_that_hangs_is_answered_in_time_and_tried_once(lake: Lake) -> None:
    async def work() -> None:
        async with started(lake) as asked:
            begun = time.monotonic()
            with pytest.raises(Problem, match=r"the query exceeded 3 s and was stopped") as told:
                await ask(asked, HANGS)
            assert told.value.status == 422
            assert time.monotonic() - begun < LATEST_S
            with pytest.raises(Problem, match="more memory"):
                await ask(asked, "SELECT repeat('x', 1000000) FROM range(100000)")
            assert await ask(asked, "SELECT 1 AS a") == [{"a": 1}]

    run(work)


@pytest.mark.slow
def test_one_key_leaves_a_process_to_the_others(lake: Lake) -> None:
    async def work() -> None:
        async with started(lake) as asked:
            greedy = [asyncio.create_task(ask(asked, HANGS, "greedy")) for _ in range(4)]
            await asyncio.sleep(0.5)
            assert await ask(asked, "SELECT 1 AS a", "modest") == [{"a": 1}]
            assert not all(one.done() for one in greedy), "it did not wait for them"
            told = await asyncio.gather(*greedy, return_exceptions=True)
            details = [str(problem) for problem in told]
            assert details[0].startswith("the query exceeded 3 s")
            assert "too many queries at once" in details

    run(work)


@pytest.mark.slow
def test_a_query_ends_when_whoever_sent_it_leaves(lake: Lake) -> None:
    async def work() -> None:
        async with started(lake) as asked:
            leaving = asyncio.create_task(ask(asked, HANGS))
            await asyncio.sleep(0.5)
            [busy] = [process for process in asked._processes._processes if process not in asked._processes._free]
            child = busy._child
            assert child is not None
            leaving.cancel()
            begun = time.monotonic()
            while child.process.is_alive():
                assert time.monotonic() - begun < LATEST_S
                await asyncio.sleep(0.05)

    run(work)


@pytest.mark.slow
def test_a_process_that_was_lost_is_started_again_before_anybody_asks(lake: Lake) -> None:
    async def work() -> None:
        async with started(lake) as asked:
            processes = asked._processes._processes
            assert all(process.is_up for process in processes)
            before = [process._child for process in processes]
            with pytest.raises(Problem):
                await ask(asked, HANGS)
            begun = time.monotonic()
            while not all(process.is_up for process in processes):
                assert time.monotonic() - begun < 30
                await asyncio.sleep(0.05)
            assert [process._child for process in processes] != before

    run(work)


def test_a_call_that_finds_no_process_free_is_told_so() -> None:
    async def work() -> None:
        processes = Processes([Isolated(30)], wait_s=0.1)
        long = asyncio.create_task(processes.call(time.sleep, 2))
        await asyncio.sleep(0.05)
        with pytest.raises(NoneFree):
            await processes.call(abs, -1)
        await long
        assert await processes.call(abs, -1) == 1
        processes.close()

    run(work)
