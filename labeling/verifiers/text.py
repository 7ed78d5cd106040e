"""Is the text an action at all?"""

from __future__ import annotations

import re

import numpy as np

from labeling.evidence import Evidence, Values

# What instruction-tuned models say instead of an action; the builtin model says "cannot tell what happens".
_REFUSAL = re.compile(
    r"\b(i('m| am) (sorry|unable)|(cannot|can't|can not|unable to) (determine|tell|see|identify|provide)|as an ai"
    r"|not (clear|visible|possible to)|no (images?|frames?) (were|was|are|is) )",
    re.IGNORECASE,
)
MAX_WORDS = 40
"""The paper's instructions are one clause; a longer text describes the scene instead of the change."""


def score(evidence: Evidence) -> Values:
    """1 for a usable action text, else 0."""
    return np.array([is_usable(action) for action in evidence.actions], np.float64)


def is_usable(action: str) -> bool:
    """Return False for a text that is empty, a refusal, a repetition, or too long."""
    words = action.lower().split()
    usable = bool(words) and len(words) <= MAX_WORDS and not _REFUSAL.search(action) and not _repeats(words)
    return usable and any(character.isalpha() for character in action)


def _repeats(words: list[str]) -> bool:
    """Return whether a phrase of one to four words occurs three times in a row: greedy decoding loops."""
    return any(
        words[start : start + size]
        == words[start + size : start + 2 * size]
        == words[start + 2 * size : start + 3 * size]
        for size in range(1, 5)
        for start in range(len(words) - 3 * size + 1)
    )
