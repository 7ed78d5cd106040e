"""Before a pod is stopped: give Ray nothing more to do here, and wait for what runs: `drain.py SECONDS`.

What fails on a node that is being drained does not count as a failure of the task. Nothing is lost without this; only
what was in hand is done twice.
"""

import os
import sys
import time

import ray
from ray._raylet import GcsClient
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION


def this_node(gcs: GcsClient, name: str) -> str | None:
    """The id of the node that Ray knows by the name of this pod, while it lives."""
    for node_id, node in gcs.get_all_node_info(timeout=5).items():
        if node.instance_id == name and node.state == 0:
            return str(node_id.hex())
    return None


def main(seconds: float) -> None:
    """Drain this node; return once it has gone or the time is over."""
    deadline = time.time() + seconds
    gcs = GcsClient(address=os.environ["RAY_ADDRESS"])
    node = this_node(gcs, os.environ["RAY_CLOUD_INSTANCE_ID"])
    if node is None:
        return
    accepted, why = gcs.drain_node(node, DRAIN_NODE_REASON_PREEMPTION, "the pod is stopped", int(deadline * 1000))
    print(f"drain {node} with ray {ray.__version__}: {why if not accepted else 'accepted'}", flush=True)
    while accepted and time.time() < deadline and this_node(gcs, os.environ["RAY_CLOUD_INSTANCE_ID"]):
        time.sleep(1)


if __name__ == "__main__":
    main(float(sys.argv[1]))
