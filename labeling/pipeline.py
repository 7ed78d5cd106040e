"""The labeling pipeline: read `decisions` from top to bottom, it is the plan."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset

from labeling.annotate import Annotate
from labeling.labeler import Labeler
from labeling.policy import Policy
from labeling.sample import SampleVideos
from labeling.stop_flag import Stop
from labeling.verify import Verify
from labeling.write import Write
from lake.errors import Refused
from lake.tables import Lake

# Rows that go to the model stage at once: a batch of the model by default. A file of a few megabytes comes out.
ROWS_PER_BLOCK = 64


# Bytes of a process at its peak, by `python -m bench.scale memory`: one that decodes 2160 lines, one that holds a
# model, without the weights, and one that writes.
DECODE_BYTES, MODEL_BYTES, WRITE_BYTES = 350 << 20, 550 << 20, 160 << 20

_ROOM = 0.9
"""Of the memory that Ray lets processes of a node have: the rest is for the driver, and what Ray Data runs beside."""

_FOOTAGE_S = 60.0
"""Seconds of video that are worth one more process of a stage: on a CPU it takes about as long to start."""

NodeLabel = str | None
"""KEY=VALUE that a node of Ray must be labeled with; None: any node will do."""


@dataclass(frozen=True)
class Workers:
    """Actors of each stage, what those of the two heavy ones ask of the cluster, and on which nodes they are."""

    decode: int
    label: int
    write: int
    """0: those that label also write."""
    decode_cpus: float
    label_cpus: float
    label_gpus: float
    decode_on: NodeLabel
    label_on: NodeLabel
    label_bytes: int
    """Memory of a node that Ray sets aside for each that labels; 0 where the user said how many this cluster has."""


def workers(
    decode: int | None,
    label: int | None,
    worker_cpus: float | None = None,
    decode_on: NodeLabel = None,
    label_on: NodeLabel = None,
    weight_bytes: int = 0,
    footage_s: float = math.inf,
) -> Workers:
    """Fill cores, GPUs and memory of the cluster that Ray is connected to; numbers given by the user win.

    Shares of the cores that are there fit on those, so without `worker_cpus` nodes that come later have nothing to do.
    With it also a given number waits for nodes with the memory for it.
    `weight_bytes` is what the model's weights take in memory; `footage_s` is how much video there is to label, of which
    every process gets a minute or more.

    Raises:
        Refused: no node has a label, or memory for the model, or without GPUs some nodes but not all would have both
            stages.
    """
    decoding, labeling = (_cpus_by_node(labels) for labels in (decode_on, label_on))
    cpus, label_cpus = (max(1, int(sum(nodes.values()))) for nodes in (decoding, labeling))
    gpus = int(sum(node["Resources"].get("GPU", 0) for node in nodes_with(label_on)))
    is_together = not gpus and decoding == labeling
    label_bytes = MODEL_BYTES + weight_bytes + WRITE_BYTES
    size = label_bytes + (DECODE_BYTES if is_together else 0)
    label_fit = {node["NodeID"]: _fit(node, "GPU" if gpus else "CPU", size) for node in nodes_with(label_on)}
    if label is None and not any(label_fit.values()) and (gpus or any(labeling.values())):
        raise Refused(
            f"a process with this model needs {size / 1e9:.1f} GB of memory, and no node that labels has that and a "
            "tenth to spare: use a smaller model or larger nodes, or set the number of processes with --label-workers"
        )
    # On the same cores there are as many of both stages; elsewhere decoding has what labeling leaves.
    decode_fit = label_fit if is_together else _beside(label_fit, label_bytes, decode_on)
    # The cores for a pair of processes on the node that has the fewest.
    cores = [labeling[node] / fit for node, fit in label_fit.items() if is_together and fit and not (decode or label)]
    is_given = label is not None and worker_cpus is None
    reserved = 0 if is_given or not any(label_fit.values()) else label_bytes
    most = max(1, math.ceil(min(footage_s / _FOOTAGE_S, 2**31)))
    decode = decode or max(1, min(most, sum(decode_fit.values())))
    label = label or max(1, min(most, sum(label_fit.values())))
    # A GPU must not wait for files to be written. On a CPU an extra process would only take turns with the model.
    write = min(label, max(cpus, label_cpus)) if gpus else 0
    if is_together:
        # Both stages live on the same cores. As many processes of each as there are cores, and the kernel gives each
        # core to whichever stage has work: no split to tune, no core idle because its stage waits.
        share = label_share = worker_cpus or 0.8 * (min(cores) / 2 if cores else cpus / (decode + label))
    elif gpus or decoding.keys().isdisjoint(labeling):
        share = worker_cpus or 0.9 * cpus / max(cpus, decode)
        label_share = 0 if gpus else worker_cpus or 0.9 * label_cpus / max(label_cpus, label)
    else:
        # Whichever stage starts first would take the cores that both may use, and the other one wait for ever.
        raise Refused(
            "--decode-on and --label-on share some nodes but not all: name nodes apart, or the same, for both"
        )
    return Workers(decode, label, write, share, label_share, 1 if gpus else 0, decode_on, label_on, reserved)


def _fit(node: dict[str, Any], kind: Literal["CPU", "GPU"], size: int, beside: int = 0) -> int:
    """Processes of `size` bytes that the node has memory for, beside others; one a core or GPU at most."""
    memory = _ROOM * node["Resources"].get("memory", math.inf) - beside
    return int(min(math.ceil(node["Resources"].get(kind, 0)), max(0, memory // size)))


def _beside(label_fit: dict[str, int], label_bytes: int, decode_on: NodeLabel) -> dict[str, int]:
    """Processes that decode, by node, beside those that label there."""
    return {
        node["NodeID"]: _fit(node, "CPU", DECODE_BYTES, beside=label_bytes * label_fit.get(node["NodeID"], 0))
        for node in nodes_with(decode_on)
    }


def _cpus_by_node(label: NodeLabel) -> dict[str, float]:
    if not (nodes := nodes_with(label)):
        raise Refused(f"no node of the cluster has the label {label}: `ray list nodes --detail` shows labels")
    return {node["NodeID"]: node["Resources"].get("CPU", 0) for node in nodes if node["Resources"].get("CPU")}


def nodes_with(label: NodeLabel) -> list[dict[str, Any]]:
    """Return the live nodes that have this label, as `ray.nodes` describes them."""
    wanted = (_selector(label) or {}).items()
    return [node for node in ray.nodes() if node["Alive"] and wanted <= node["Labels"].items()]


def _selector(label: NodeLabel) -> dict[str, str] | None:
    """Return the label as Ray takes it."""
    if label is None:
        return None
    key, _, value = label.partition("=")
    return {key: value}


def decisions(
    work: pa.Table,
    labeler: Labeler,
    policy: Policy,
    lake: Lake,
    run_id: str,
    stop: Stop,
    pool: Workers,
    timeout_s: float,
) -> Dataset:
    """Videos in (`stream.WORK`), one `Report` a block of written rows out; nothing is committed yet."""
    verify = Verify(policy)
    write_arguments = (lake, run_id, labeler.id, policy.id, labeler.decoder)
    finish = () if pool.write else (verify, Write(*write_arguments))
    labeled = (
        # Not `from_arrow`, which starts tasks to look at tables that are here.
        ray.data.from_blocks(_tasks(work, pool.decode))
        .map_batches(
            SampleVideos,
            fn_constructor_args=(labeler, lake.storage, stop, timeout_s, run_id),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=pool.decode),
            num_cpus=pool.decode_cpus,
            label_selector=_selector(pool.decode_on),
        )
        .map_batches(
            Annotate,
            fn_constructor_args=(labeler.settings.model, finish),
            batch_size=ROWS_PER_BLOCK,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=pool.label),
            num_cpus=pool.label_cpus,
            num_gpus=pool.label_gpus,
            memory=pool.label_bytes,
            label_selector=_selector(pool.label_on),
        )
    )
    if not pool.write:
        return labeled
    return (
        labeled
        # Light work, fused into one stage: a tenth of a core lets it run beside the actors that own the cores. Actors,
        # because Ray ends the process of a task that has nothing to do for a second, and starts another for the next.
        .map_batches(verify, batch_size=None, batch_format="pyarrow", num_cpus=0.1).map_batches(
            Write,
            fn_constructor_args=write_arguments,
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=pool.write),
            num_cpus=0.1,
        )
    )


def _tasks(work: pa.Table, decoders: int) -> list[pa.Table]:
    """Cut the list of videos into tasks: few enough for the scheduler, many enough that the last ones end together."""
    size = max(1, min(16, len(work) // (decoders * 8)))
    return [work.slice(start, size) for start in range(0, len(work), size)]
