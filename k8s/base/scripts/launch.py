"""Start a RayJob like a suspended one, wait for it, and exit as `worldlake` did in it: `launch.py NAME`.

0 done, 2 refused, which the Job that runs this does not try again; 1 for everything else, which it does. A launcher
that was moved to another node finds the RayJob of its Job, running or finished, and uses that.
"""

import hashlib
import http.client
import itertools
import json
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path
from typing import Any

ACCOUNT = Path(os.environ.get("WORLDLAKE_ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))
POLL_S = float(os.environ.get("WORLDLAKE_POLL_S", "10"))
# An API server is away for some minutes when it is upgraded; one of the Job's few tries is not worth that.
PATIENCE_S = float(os.environ.get("WORLDLAKE_PATIENCE_S", "600"))
# What Ray says of a driver; KubeRay hands it on and has no field for the code alone.
EXIT_CODE = re.compile(r"failed with exit code (-?\d+)")


def call(path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask the API server about RayJobs of this namespace, or create one; while it is away, ask again."""
    deadline, pause = time.monotonic() + PATIENCE_S, POLL_S
    while True:
        try:
            return call_once(path, body)
        except (OSError, http.client.HTTPException) as error:
            refuses = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429
            if refuses or time.monotonic() > deadline:
                raise
            print(f"the API server does not answer ({error}), and is asked again in {pause:g} s", flush=True)
            time.sleep(pause)
            # It may be away because too many ask.
            pause = min(2 * pause, 6 * POLL_S)


def call_once(path: str, body: dict[str, Any] | None) -> dict[str, Any]:
    """The answer to one request."""
    address = os.environ.get("WORLDLAKE_API", "https://kubernetes.default.svc")
    namespace = (ACCOUNT / "namespace").read_text().strip()
    request = urllib.request.Request(  # noqa: S310 - the cluster's own API server
        f"{address}/apis/ray.io/v1/namespaces/{namespace}/rayjobs{path}",
        None if body is None else json.dumps(body).encode(),
        # Read each time: it changes every hour.
        {"Authorization": f"Bearer {(ACCOUNT / 'token').read_text().strip()}", "Content-Type": "application/json"},
    )
    trusted = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt")) if address.startswith("https") else None
    with urllib.request.urlopen(request, timeout=30, context=trusted) as answer:  # noqa: S310
        return dict(json.load(answer))


def copy_of(template: dict[str, Any], name: str, job: str, uid: str) -> dict[str, Any]:
    """A RayJob like the template, that runs, and goes when the Job does."""
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job, "uid": uid}
    return {
        "apiVersion": template["apiVersion"],
        "kind": template["kind"],
        "metadata": {
            "name": name,
            "labels": {**template["metadata"].get("labels", {}), "worldlake.io/job": job},
            "ownerReferences": [owner],
        },
        "spec": {**template["spec"], "suspend": False},
    }


def verdict(status: dict[str, Any]) -> int | None:
    """Return the exit code of a RayJob; None while it runs."""
    if status.get("jobDeploymentStatus") == "Complete":
        return 0 if status.get("jobStatus") == "SUCCEEDED" else 1
    if status.get("jobDeploymentStatus") == "ValidationFailed":
        return 2
    if status.get("jobDeploymentStatus") != "Failed":
        return None
    code = EXIT_CODE.search(status.get("message", ""))
    return 2 if code and code[1] == "2" else 1


def start(template: str, job: str, uid: str, taken: set[str]) -> str:
    """Create another RayJob for the Job, or find the one that an earlier try to create it has left; its name."""
    # By a rule, so that a request whose answer was lost starts no second one.
    names = (f"{template}-{hashlib.sha256(f'{uid} {number}'.encode()).hexdigest()[:8]}" for number in itertools.count())
    name = next(name for name in names if name not in taken)
    try:
        call("", copy_of(call(f"/{template}"), name, job, uid))
    except urllib.error.HTTPError as error:
        if error.code != HTTPStatus.CONFLICT:
            raise
    return name


def main(template: str) -> int:
    """Find the running or finished RayJob of this Job, or start one; wait for its end."""
    job, uid = os.environ["JOB_NAME"], os.environ["JOB_UID"]
    found = call(f"?labelSelector=worldlake.io/job%3D{job}")["items"]
    # Of a deleted Job of the same name something may be left for a while.
    found = [one for one in found if uid in (owner["uid"] for owner in one["metadata"].get("ownerReferences", []))]
    verdicts = {one["metadata"]["name"]: verdict(one.get("status", {})) for one in found}
    # What has failed is to be tried again.
    mine = [name for name, code in verdicts.items() if code != 1]
    name = min(mine, key=lambda name: verdicts[name] is not None) if mine else start(template, job, uid, set(verdicts))
    print(f"RayJob {name}", flush=True)
    try:
        return wait_for(name)
    except urllib.error.HTTPError as error:
        if error.code != HTTPStatus.NOT_FOUND:
            raise
        print(f"RayJob {name} was deleted; where the Job tries again it starts another: delete the Job to end both")
        return 1


def wait_for(name: str) -> int:
    """The exit code of a RayJob, once it has ended."""
    while (code := verdict(status := call(f"/{name}").get("status", {}))) is None:
        time.sleep(POLL_S)
    print(": ".join(filter(None, [status.get("reason") or status.get("jobStatus"), status.get("message")])))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
