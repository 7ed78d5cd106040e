"""The script that starts a RayJob and waits for it, against a server that answers as the API server would."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.k8s.manifests import OVERLAYS, ROOT, one, overlay, validate

SCRIPT = ROOT / "k8s" / "base" / "scripts" / "launch.py"
PATH = "/apis/ray.io/v1/namespaces/lakes/rayjobs"
REFUSED = "Job entrypoint command failed with exit code 2, last available logs (truncated to 20,000 chars):\nno video"
CRASHED = (
    "Job entrypoint command failed with exit code 1, last available logs (truncated to 20,000 chars):\nexit code 2"
)


class Cluster:
    """RayJobs that go through the given states, one more each time that they are looked at."""

    def __init__(self, *states: dict[str, Any]) -> None:
        self.template = one(overlay("gpu"), "RayJob", "worldlake-label")
        self.template["metadata"].setdefault("labels", {})
        self.jobs: dict[str, dict[str, Any]] = {"worldlake-label": self.template}
        self.created: list[dict[str, Any]] = []
        self.states = list(states)
        self.is_deleted = False
        self.errors: list[int | None] = []
        """Instead of the next answers to GET: a status, or none and no answer at all."""
        self.loses_answer = False
        """Of the next POST."""
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def had(self, status: dict[str, Any], uid: str = "uid-1") -> None:
        """Have a RayJob of an earlier launcher, whose Job had this uid."""
        name = "worldlake-label-before"
        metadata = {"name": name, "labels": {"worldlake.io/job": "label-1"}, "ownerReferences": [{"uid": uid}]}
        self.jobs[name] = {"metadata": metadata, "status": status}

    def look(self, name: str) -> dict[str, Any]:
        job = self.jobs[name]
        if job is not self.template:
            job["status"] = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return job


class Handler(BaseHTTPRequestHandler):
    """The API server's part."""

    def __init__(self, cluster: Cluster, *arguments: Any) -> None:
        self.cluster = cluster
        super().__init__(*arguments)

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        name = path.removeprefix(f"{PATH}/")
        if self.cluster.errors:
            if (code := self.cluster.errors.pop(0)) is not None:
                self.send_error(code)
        elif self.headers["Authorization"] != "Bearer secret":
            self.send_error(401)
        elif path == PATH:
            assert query == "labelSelector=worldlake.io/job%3Dlabel-1"
            jobs = self.cluster.jobs.values()
            self.answer({"items": [job for job in jobs if "worldlake.io/job" in job["metadata"]["labels"]]})
        elif self.cluster.is_deleted and name != "worldlake-label":
            self.send_error(404)
        else:
            self.answer(self.cluster.look(name))

    def do_POST(self) -> None:
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = job["metadata"]["name"]
        if name in self.cluster.jobs:
            self.send_error(409)
            return
        self.cluster.created.append(job)
        self.cluster.jobs[name] = job
        if not self.cluster.loses_answer:
            self.answer(job)
        self.cluster.loses_answer = False

    def answer(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def account(tmp_path: Path) -> Path:
    (tmp_path / "namespace").write_text("lakes\n")
    (tmp_path / "token").write_text("secret\n")
    return tmp_path


def launch(cluster: Cluster, account: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "WORLDLAKE_API": f"http://127.0.0.1:{cluster.server.server_port}",
        "WORLDLAKE_ACCOUNT": str(account),
        "WORLDLAKE_POLL_S": "0.01",
        "WORLDLAKE_PATIENCE_S": "5",
        "JOB_NAME": "label-1",
        "JOB_UID": "uid-1",
    }
    done = subprocess.run(
        [sys.executable, SCRIPT, "worldlake-label"], env=environment, capture_output=True, text=True, timeout=60
    )
    cluster.server.shutdown()
    return done


def running() -> Iterator[dict[str, Any]]:
    yield {}
    for status in ("Initializing", "Waiting", "Suspending", "Suspended", "Retrying"):
        yield {"jobDeploymentStatus": status}
    for status in ("PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"):
        yield {"jobDeploymentStatus": "Running", "jobStatus": status}


@pytest.mark.parametrize(
    ("last", "code"),
    [
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, 0),
        # Somebody stopped it.
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, 1),
        ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed", "message": REFUSED}, 2),
        ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed", "message": CRASHED}, 1),
        ({"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"}, 1),
        ({"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed", "message": "a name too long"}, 2),
    ],
)
def test_it_exits_as_worldlake_did(last: dict[str, Any], code: int, account: Path) -> None:
    cluster = Cluster(*running(), last)
    done = launch(cluster, account)
    assert done.returncode == code, done.stderr
    said = [last.get("reason") or last["jobStatus"], last.get("message")]
    assert done.stdout.endswith("\n" + ": ".join(filter(None, said)) + "\n")
    assert len(cluster.created) == 1


def test_what_it_starts_is_the_template_at_work(account: Path) -> None:
    cluster = Cluster({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"})
    launch(cluster, account)
    (made,) = cluster.created
    assert cluster.template["spec"]["suspend"] is True
    assert made["spec"] == {**cluster.template["spec"], "suspend": False}
    assert made["metadata"]["labels"]["worldlake.io/job"] == "label-1"
    assert made["metadata"]["ownerReferences"][0]["uid"] == "uid-1"
    # KubeRay takes no longer name.
    assert len(made["metadata"]["name"]) <= 47
    validate({key: value for key, value in made.items() if key != "status"})


def test_it_waits_for_the_one_that_it_had_started(account: Path) -> None:
    cluster = Cluster({"jobDeploymentStatus": "Running"}, {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"})
    cluster.had({})
    done = launch(cluster, account)
    assert (done.returncode, cluster.created) == (0, [])
    assert "worldlake-label-before" in done.stdout


def test_after_one_that_failed_it_starts_another(account: Path) -> None:
    cluster = Cluster({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"})
    cluster.had({"jobDeploymentStatus": "Failed", "message": CRASHED})
    done = launch(cluster, account)
    assert (done.returncode, len(cluster.created)) == (0, 1)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, 0),
        ({"jobDeploymentStatus": "Failed", "message": REFUSED}, 2),
        ({"jobDeploymentStatus": "ValidationFailed", "message": "a name too long"}, 2),
    ],
)
def test_one_that_ended_while_no_launcher_was_there_is_not_done_again(
    status: dict[str, Any], code: int, account: Path
) -> None:
    cluster = Cluster(status)
    cluster.had(status)
    done = launch(cluster, account)
    assert (done.returncode, cluster.created) == (code, [])


@pytest.mark.parametrize("status", [{}, {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}])
def test_what_an_earlier_job_of_the_same_name_left_is_not_its_own(status: dict[str, Any], account: Path) -> None:
    cluster = Cluster({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"})
    cluster.had(status, uid="uid-0")
    done = launch(cluster, account)
    assert (done.returncode, len(cluster.created)) == (0, 1)
    assert "worldlake-label-before" not in done.stdout


def test_an_api_server_that_is_away_is_asked_again(account: Path) -> None:
    cluster = Cluster({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"})
    cluster.errors = [503, 429, None]
    cluster.loses_answer = True
    done = launch(cluster, account)
    assert (done.returncode, len(cluster.created)) == (0, 1), done.stderr
    # Three times for the list, then once for the creation.
    assert re.findall(r"asked again in (\S+) s", done.stdout) == ["0.01", "0.02", "0.04", "0.01"]


def test_an_api_server_that_says_no_is_worth_another_try(account: Path) -> None:
    (account / "token").write_text("wrong")
    done = launch(Cluster({}), account)
    assert done.returncode == 1
    assert "401" in done.stderr


def test_one_that_was_deleted_is_said_in_one_line(account: Path) -> None:
    cluster = Cluster({})
    cluster.is_deleted = True
    done = launch(cluster, account)
    assert done.returncode == 1
    assert "was deleted" in done.stdout.splitlines()[-1]
    assert not done.stderr


@pytest.mark.parametrize("name", ["worldlake-label", "worldlake-train"])
@pytest.mark.parametrize("folder", OVERLAYS)
def test_a_job_ends_by_itself_but_not_before_its_rayjob(folder: str, name: str) -> None:
    job = one(overlay(folder), "CronJob", name)["spec"]["jobTemplate"]["spec"]
    rayjob = one(overlay(folder), "RayJob", name)["spec"]
    assert job["activeDeadlineSeconds"] > rayjob["activeDeadlineSeconds"] + rayjob["preRunningDeadlineSeconds"]
