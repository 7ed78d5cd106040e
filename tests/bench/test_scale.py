from __future__ import annotations

import pytest

from bench.scale import catalog, commits


@pytest.mark.slow
def test_small_catalogs_and_few_commits_are_measured() -> None:
    small, large = catalog((1000, 3000))
    assert [small["videos"], large["videos"]] == [1000, 3000]
    assert large["tasks"] >= small["tasks"]
    *_, maintained = commits(120)
    assert maintained["after"] == "worldlake maintain"
    assert maintained["open_s"] > 0
