from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

import lake.retry
from lake.retry import Schedule, retry, retry_async, seconds_asked


class Clock:
    """Time that passes only while somebody waits."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return sum(self.waits)

    async def wait(self, seconds: float) -> None:
        self.waits.append(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lake.retry, "time", SimpleNamespace(sleep=clock.waits.append, monotonic=clock.monotonic))
    monkeypatch.setattr(lake.retry, "asyncio", SimpleNamespace(sleep=clock.wait))
    return clock


class Away(Exception):
    retry_after_s = 0.0


class Asked(Away):
    retry_after_s = 3.0


class Answers:
    """Raises what it is given, in order, and then says how often it was called."""

    def __init__(self, *errors: type[Exception]) -> None:
        self._errors, self.calls = list(errors), 0

    def __call__(self) -> int:
        self.calls += 1
        if self._errors:
            raise self._errors.pop(0)
        return self.calls

    async def later(self) -> int:
        return self()


def passes(error: Exception) -> bool:
    return isinstance(error, Away)


def test_what_passes_is_waited_for_and_told(clock: Clock) -> None:
    told: list[tuple[str, float]] = []
    schedule = Schedule((1, 2, 4))
    note = lambda error, wait_s: told.append((type(error).__name__, wait_s))  # noqa: E731
    assert retry(Answers(Away, Asked, Away), schedule, passes, note) == 4
    assert clock.waits == [1, 3, 4]
    assert told == [("Away", 1), ("Asked", 3), ("Away", 4)]
    assert asyncio.run(retry_async(Answers(Away, Away).later, schedule, passes)) == 3
    assert clock.waits[3:] == [1, 2]


@pytest.mark.parametrize("is_async", [False, True])
def test_the_last_error_is_raised_and_another_one_at_once(clock: Clock, is_async: bool) -> None:
    def end(answers: Answers, schedule: Schedule) -> None:
        if is_async:
            asyncio.run(retry_async(answers.later, schedule, passes))
        else:
            retry(answers, schedule, passes)

    answers = Answers(Away, Away, Asked, Away)
    with pytest.raises(Asked):
        end(answers, Schedule((1, 2)))
    assert (answers.calls, clock.waits) == (3, [1, 2])
    answers = Answers(Away, ValueError)
    with pytest.raises(ValueError):  # noqa: PT011 - its type is all there is
        end(answers, Schedule((1, 2)))
    assert answers.calls == 2


def test_patience_is_time_and_repeats_the_last_wait(clock: Clock) -> None:
    answers = Answers(*[Away] * 100)
    with pytest.raises(Away):
        retry(answers, Schedule((1, 2), patience_s=10), passes)
    assert clock.waits == [1, 2, 2, 2, 2, 2]


def test_jitter_shortens_waits_by_half_at_most(clock: Clock) -> None:
    with pytest.raises(Away):
        retry(Answers(*[Away] * 100), Schedule((2,) * 50, jitter=True), passes)
    assert all(1 <= wait <= 2 for wait in clock.waits)
    assert len(set(clock.waits)) > 1


def test_an_error_may_be_replaced_by_what_says_more(clock: Clock) -> None:
    def explained(error: Exception) -> bool:
        raise RuntimeError("set the clock") from error

    with pytest.raises(RuntimeError, match="set the clock"):
        retry(Answers(Away), Schedule((1,)), explained)
    assert clock.waits == []


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, 0), ("7", 7), ("Wed, 21 Oct 2026 07:28:00 GMT", 0), ("-1", 0), ("", 0), ("61", 60), ("9" * 400, 60)],
)
def test_a_header_says_seconds_or_nothing(header: str | None, seconds: float) -> None:
    assert seconds_asked(header) == seconds
