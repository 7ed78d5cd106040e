"""Identities are for ever: another spelling of one would label every lake anew."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from lake.ids import content_id, triple_id, video_id

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def test_ids_are_what_they_were() -> None:
    assert content_id({"b": [1, None], "a": "ü"}) == "5ddd266d13a5e8cd"
    assert video_id("s3://bucket/a b.mp4", "etag-1") == "56f0871e7aecbfd28a8b349ecb921ec9"
    assert triple_id("v", 1, 2, "l") == "6f427a85-8f79-521a-8f17-8253cd30737a"


@given(st.dictionaries(st.text(), json_values))
def test_the_order_of_keys_does_not_count(content: dict[str, object]) -> None:
    assert content_id(content) == content_id(dict(reversed(content.items())))
    assert content_id([content]) != content_id(content)


def test_whatever_differs_has_another_id() -> None:
    videos = [video_id(uri, etag) for uri, etag in (("a", "b"), ("ab", ""), ("", "ab"), ("a", "c"), ("b", "b"))]
    triples = [
        triple_id(*parts)
        for parts in (("v", 1, 2, "l"), ("v", 2, 1, "l"), ("v", 12, 2, "l"), ("w", 1, 2, "l"), ("v", 1, 2, "m"))
    ]
    for ids in (videos, triples):
        assert all(one != other for one, other in combinations(ids, 2))


def test_a_name_that_is_no_unicode_has_an_id_of_its_own() -> None:
    broken = b"/videos/\xff.mp4".decode("utf-8", "surrogateescape")
    assert video_id(broken, "e") != video_id("/videos/\N{REPLACEMENT CHARACTER}.mp4", "e")
