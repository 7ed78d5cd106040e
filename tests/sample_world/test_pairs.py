"""Training pairs of the sample world and their mirror images."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sample_world.pairs import all_actions, transformed


@given(st.sampled_from(all_actions()), st.integers(0, 3), st.booleans(), st.booleans())
def test_a_transformed_action_is_an_action_and_goes_back(action: str, turns: int, mirror: bool, swap: bool) -> None:
    there = transformed(action, turns, mirror, swap)
    assert there in all_actions()
    unmirrored = transformed(there, 0, mirror, swap)
    assert transformed(unmirrored, (4 - turns) % 4, False, False) == action
