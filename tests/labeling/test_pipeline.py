from __future__ import annotations

import math
from typing import Any

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from labeling.pipeline import DECODE_BYTES, MODEL_BYTES, WRITE_BYTES, NodeLabel, Workers, workers
from lake.errors import Refused

CPU, MODEL, NOWHERE = "group=cpu", "group=model", "group=nowhere"


def node(number: int, cpus: int, gpus: int = 0, memory: float = 1 << 40, **labels: str) -> dict[str, Any]:
    resources = {"CPU": cpus, "GPU": gpus, "memory": memory}
    return {
        "Alive": True,
        "NodeID": str(number),
        "Labels": labels,
        "Resources": {name: count for name, count in resources.items() if count},
    }


def asked(pool: Workers) -> dict[str, float]:
    """Of all the processes of a stage together."""
    return {"decode": pool.decode * pool.decode_cpus, "label": pool.label * pool.label_cpus, "write": pool.write * 0.1}


@pytest.mark.parametrize(
    ("decode_on", "label_on", "gpus", "decode", "label"),
    [
        (None, None, 0, 12, 12),
        (None, None, 1, 12, 1),
        (CPU, MODEL, 0, 8, 4),
        (CPU, MODEL, 1, 8, 1),
        (CPU, None, 1, 8, 1),
        (None, MODEL, 1, 12, 1),
        (CPU, CPU, 0, 8, 8),
    ],
)
def test_what_all_workers_ask_for_fits(
    monkeypatch: pytest.MonkeyPatch, decode_on: NodeLabel, label_on: NodeLabel, gpus: int, decode: int, label: int
) -> None:
    nodes = [node(0, 0), node(1, 8, group="cpu"), node(2, 4, gpus, group="model")]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    pool = workers(None, None, None, decode_on, label_on)
    assert (pool.decode, pool.label, pool.label_gpus) == (decode, label, gpus)
    there = 12 if decode_on != label_on or decode_on is None else 8
    assert sum(asked(pool).values()) <= there
    assert asked(pool)["decode"] <= (8 if decode_on else 12)
    assert asked(pool)["label"] <= (4 if label_on == MODEL else there)


@pytest.mark.parametrize(
    ("decode_on", "label_on", "says"),
    [
        (None, MODEL, "share some nodes but not all"),
        (CPU, None, "share some nodes but not all"),
        (CPU, NOWHERE, "no node of the cluster has the label group=nowhere"),
        (NOWHERE, None, "no node of the cluster has the label group=nowhere"),
    ],
)
def test_what_cannot_fit_is_refused(
    monkeypatch: pytest.MonkeyPatch, decode_on: NodeLabel, label_on: NodeLabel, says: str
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [node(1, 8, group="cpu"), node(2, 4, group="model")])
    with pytest.raises(Refused, match=says):
        workers(None, None, None, decode_on, label_on)


@pytest.mark.parametrize(("seconds", "processes"), [(0.0, 1), (30.0, 1), (61.0, 2), (1e9, 8), (math.inf, 8)])
def test_little_footage_gets_few_processes(monkeypatch: pytest.MonkeyPatch, seconds: float, processes: int) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [node(1, 8)])
    pool = workers(None, None, footage_s=seconds)
    assert (pool.decode, pool.label) == (processes,) * 2
    assert workers(4, 3, footage_s=seconds).decode == 4


def test_a_cluster_without_workers_yet_is_one_of_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [node(0, 0)])
    pool = workers(None, None)
    assert (pool.decode, pool.label) == (1, 1)
    assert sum(asked(pool).values()) <= 1


@given(
    machines=st.lists(
        st.tuples(st.integers(0, 64), st.integers(0, 8), st.integers(1 << 28, 1 << 38)), min_size=1, max_size=4
    ),
    weights=st.integers(0, 1 << 35),
)
def test_processes_find_memory_on_their_nodes(machines: list[tuple[int, int, int]], weights: int) -> None:
    nodes = [node(number, *machine) for number, machine in enumerate(machines)]
    gpus = sum(count for _, count, _ in machines)
    places = [(count if gpus else cpus, memory) for cpus, count, memory in machines]
    size = weights + MODEL_BYTES + WRITE_BYTES
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "nodes", lambda: nodes)
        try:
            pool = workers(None, None, weight_bytes=weights)
        except Refused:
            assert any(count for count, _ in places)
            assert all(0.9 * memory < size + DECODE_BYTES for count, memory in places if count)
            return
    if pool.label_bytes:
        assert pool.label <= sum(min(count, memory // size) for count, memory in places)
        assert pool.label * size + (pool.decode - 1) * DECODE_BYTES <= 0.9 * sum(memory for *_, memory in machines)
    else:
        # Nodes are yet to come.
        assert not any(count for count, _ in places)


def test_only_beside_a_gpu_writing_has_processes_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [node(1, 8)])
    assert workers(None, None).write == 0
    monkeypatch.setattr(ray, "nodes", lambda: [node(1, 8, 2)])
    assert workers(None, None).write == 2


def test_on_a_node_with_a_gpu_decoding_has_what_the_model_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [node(1, 8, 1, memory=10 << 30)])
    pool = workers(None, None, weight_bytes=6 << 30)
    assert pool.label == 1
    assert pool.decode == 6
    assert pool.decode * DECODE_BYTES + pool.label_bytes < 10 << 30


def test_every_node_holds_what_it_has_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = node(1, 16, memory=8 << 30), node(2, 2, memory=64 << 30)
    monkeypatch.setattr(ray, "nodes", lambda: [large, small])
    pool = workers(None, None, weight_bytes=2 << 30)
    assert (pool.decode, pool.label) == (4, 4)
    # Two of each on two cores.
    assert 4 * pool.label_cpus <= 2


def test_who_says_how_many_there_are_to_be_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [node(1, 4, memory=1 << 30)])
    told = workers(3, 5, weight_bytes=1 << 50)
    assert (told.decode, told.label, told.label_bytes) == (3, 5, 0)


def test_a_large_model_gets_fewer_processes_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [node(1, 16, memory=64e9)])
    # Four bytes for each of 3 billion weights.
    assert workers(None, None, weight_bytes=12_000_000_000).label == 4
    assert workers(None, None).label == 16
    with pytest.raises(Refused, match=r"needs 81\.1 GB.*--label-workers"):
        workers(None, None, weight_bytes=80_000_000_000)


def test_half_a_core_is_enough_for_one_process_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    half = node(1, 1)
    half["Resources"]["CPU"] = 0.5
    monkeypatch.setattr(ray, "nodes", lambda: [half])
    pool = workers(None, None)
    assert (pool.decode, pool.label) == (1, 1)
    assert pool.decode_cpus + pool.label_cpus < 0.5
