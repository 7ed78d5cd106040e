"""The check of wording finds idioms, and leaves plain sentences alone."""

from __future__ import annotations

from tests.wording import findings

GOES = "go" + "es on"


def test_an_idiom_is_found_with_its_line_and_remedy() -> None:
    assert findings(f"# One.\n# The run {GOES}.\n") == [(2, GOES, "continue, resume")]


def test_plain_sentences_pass() -> None:
    assert findings("There is no key. It is no longer valid. Based on the code that goes once.") == []
