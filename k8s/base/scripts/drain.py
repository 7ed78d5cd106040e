"""Before a pod is stopped: let what runs on it come to an end: `drain.py SECONDS`.

A worker gets nothing more to do, and what fails on it meanwhile does not count as a failure of the task. The jobs of a
head are told to stop. Nothing is lost without this; only what was in hand is done twice.
"""

import os
import sys
import time

import ray
from ray._raylet import GcsClient
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION
from ray.job_submission import JobSubmissionClient


def this_node(gcs: GcsClient) -> tuple[str, bool] | None:
    """Return the id of this pod's node in Ray, and whether it is the head."""
    for node_id, node in gcs.get_all_node_info(timeout=5).items():
        if node.instance_id == os.environ["RAY_CLOUD_INSTANCE_ID"] and node.state == 0:
            return str(node_id.hex()), bool(node.is_head_node)
    return None


def drain(gcs: GcsClient, node: str, deadline: float) -> None:
    """Return once the node has gone or the time is over."""
    accepted, why = gcs.drain_node(node, DRAIN_NODE_REASON_PREEMPTION, "the pod is stopped", int(deadline * 1000))
    print(f"drain {node} with ray {ray.__version__}: {why if not accepted else 'accepted'}", flush=True)
    while accepted and time.time() < deadline and this_node(gcs):
        time.sleep(1)


def stop_jobs(deadline: float) -> None:
    """Return once no job runs or the time is over."""
    client = JobSubmissionClient()

    def running() -> list[str]:
        return [job.submission_id for job in client.list_jobs() if job.submission_id and not job.status.is_terminal()]

    for job in running():
        print(f"stop {job}: {client.stop_job(job)}", flush=True)
    while time.time() < deadline and running():
        time.sleep(1)


def main(seconds: float) -> None:
    """Drain the node that this pod is."""
    deadline = time.time() + seconds
    gcs = GcsClient(address=os.environ["RAY_ADDRESS"])
    if (found := this_node(gcs)) is None:
        return
    node, is_head = found
    if is_head:
        stop_jobs(deadline)
    else:
        drain(gcs, node, deadline)


if __name__ == "__main__":
    main(float(sys.argv[1]))
