"""A cluster and a store that its nodes reach."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.nodes import HOST, MISSING, Nodes, can_run
from tests.seaweed import Seaweed


@pytest.fixture(scope="package")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """The bridge that the store listens on stays; nodes come and go with every test."""
    if not can_run():
        pytest.skip(MISSING)
    nodes = Nodes(tmp_path_factory.mktemp("nodes"))
    yield nodes
    nodes.remove()


@pytest.fixture(scope="package")
def store(bridge: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """An S3 server, which the environment points to."""
    server = Seaweed(tmp_path_factory.mktemp("seaweed"), host=HOST)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server
    server.stop()


@pytest.fixture
def nodes(bridge: Nodes, store: Seaweed) -> Iterator[Nodes]:
    """A head and two workers."""
    bridge.restart()
    yield bridge
    bridge.stop()
