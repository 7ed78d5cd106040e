"""The tests notice errors: of small ones that are put into the code, at least this share."""

from __future__ import annotations

import pytest

from tests.mutants import ROOT, TARGETS, mutants, run

FLOOR = 0.85


def test_the_sample_of_mutants_is_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for path in TARGETS:
        once, again = (mutants(path, 20, seed=0) for _ in range(2))
        assert once == again
        assert once


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_enough_mutants_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    outcomes = list(run(list(TARGETS)))
    survivors = [outcome for outcome in outcomes if outcome.survived]
    noticed = 1 - len(survivors) / len(outcomes)
    assert noticed >= FLOOR, "\n".join(outcome.diff for outcome in survivors)
