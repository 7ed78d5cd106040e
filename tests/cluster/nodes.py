"""A Ray cluster of several nodes on this machine: each in a network namespace, with an address and a cable of its own.

Nothing is simulated but the cable: every node is what `ray start` starts, and what is killed is killed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

BRIDGE, NETWORK, HOST = "wlbridge", "10.213.77", "10.213.77.1"
PORT = 6379

RAY = {
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.load_shedding:middlewares",  # as the manifests have it
    "RAY_TMPDIR": "/tmp/wlray",  # short, for the paths of sockets
}
"""The environment of nodes and of what connects to them."""

MISSING = "network namespaces need root and iproute2 (Debian: apt-get install iproute2)"


def can_run() -> bool:
    """Return whether this machine lets us make network namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    return subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode == 0


class Node:
    """A namespace `wl<number>` with an address, and the Ray processes in it."""

    def __init__(self, number: int) -> None:
        self.name, self.address = f"wl{number}", f"{NETWORK}.{number + 10}"
        _ip("netns", "add", self.name)
        _ip("link", "add", self.name, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _ip("link", "set", self.name, "master", BRIDGE, "up")
        self.inside("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            self.inside("ip", "link", "set", device, "up")

    def inside(self, *command: str) -> None:
        """Run a command in the namespace and wait for it."""
        subprocess.run(["ip", "netns", "exec", self.name, *command], check=True, capture_output=True)

    def start(self, folder: Path, *options: str, **environment: str) -> None:
        """Start Ray in it, and whatever Ray starts."""
        command = ["ip", "netns", "exec", self.name, _program("ray"), "start", "--block", "--disable-usage-stats"]
        command += [f"--node-ip-address={self.address}", "--object-store-memory=200000000", *options]
        with (folder / f"{self.name}.log").open("ab") as log:
            subprocess.Popen(
                command, stdout=log, stderr=log, env={**_environment(), **environment}, start_new_session=True
            )

    def processes(self) -> list[psutil.Process]:
        """All that runs in it."""
        return _processes(self.name)

    def runs(self, name: str) -> int:
        """How many processes in it have a name in their command line."""
        found = 0
        for process in self.processes():
            with suppress(psutil.Error):
                found += name in " ".join(process.cmdline())
        return found

    def kill(self) -> None:
        """Kill -9 everything in it at once, as a power cut does."""
        _kill(self.name)

    def cut(self, seconds: float) -> None:
        """Pull its cable for some seconds."""
        _ip("link", "set", self.name, "down")
        time.sleep(seconds)
        _ip("link", "set", self.name, "up")

    def slow(self, seconds: float, share: float) -> None:
        """Let its processes run for a share of the time only."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            _signal(stopped := self.processes(), signal.SIGSTOP)
            time.sleep(0.5 * (1 - share))
            _signal(stopped, signal.SIGCONT)
            time.sleep(0.5 * share)

    def remove(self) -> None:
        """Kill what is in it and take it away."""
        self.kill()
        _ip("netns", "delete", self.name)


class Nodes:
    """A bridge, a head without cores of its own, and workers with one core each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.head: Node | None = None
        self.workers: list[Node] = []
        self._made = 0
        _clean()
        # An address of its own: otherwise it takes one of its cables', and another when that is gone.
        _ip("link", "add", BRIDGE, "address", "02:00:00:00:77:01", "type", "bridge")
        _ip("address", "add", f"{HOST}/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")

    def start_head(self, *options: str, **environment: str) -> Node:
        """Start a head: the first, or another after that one died; where that one was, if it was not removed."""
        self.head = self.head or self._new()
        # Ray's note of the cluster that is here already: a machine of its own would have none.
        Path(RAY["RAY_TMPDIR"], "ray", "ray_current_cluster").unlink(missing_ok=True)
        own = ("--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false")
        self.head.start(self.folder, *own, *options, **environment)
        self._wait(lambda: _answers(self.address))
        return self.head

    def add_worker(self, *options: str, **environment: str) -> Node:
        """Start a node that joins the head."""
        node = self._new()
        node.start(self.folder, f"--address={self.address}", "--num-cpus=1", *options, **environment)
        self.workers.append(node)
        self._wait(lambda: "Ray runtime started" in (self.folder / f"{node.name}.log").read_text())
        return node

    @property
    def address(self) -> str:
        """Of the head, as RAY_ADDRESS."""
        assert self.head is not None
        return f"{self.head.address}:{PORT}"

    def driver(self, *command: str) -> tuple[str, ...]:
        """The command as it runs on the head's node, where a submitted job's driver runs."""
        assert self.head is not None
        return ("ip", "netns", "exec", self.head.name, *command)

    def remove(self) -> None:
        """Take everything away."""
        self.stop()
        _clean()

    def restart(self) -> None:
        """Start anew, with a head and two workers."""
        self.stop()
        self.start_head()
        for _ in range(2):
            self.add_worker()

    def stop(self) -> None:
        """Take all nodes away; the bridge stays."""
        for node in [*self.workers, *filter(None, [self.head])]:
            node.remove()
        self.workers, self.head = [], None

    def _new(self) -> Node:
        self._made += 1
        return Node(self._made)

    def _wait(self, condition: Callable[[], bool], timeout_s: float = 60) -> None:
        until = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > until:
                logs = "".join(path.read_text() for path in self.folder.glob("wl*.log"))
                raise AssertionError(f"a node has not started after {timeout_s} s: {logs}")
            time.sleep(0.2)


def _answers(address: str) -> bool:
    import socket

    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


def _environment() -> Mapping[str, str]:
    """Without a token that this user may have, and away from where Ray notes the cluster that others then join."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, **RAY}


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _processes(namespace: str) -> list[psutil.Process]:
    listed = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    found = []
    for pid in listed.stdout.split():
        # It may end meanwhile.
        with suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(int(pid)))
    return found


def _kill(namespace: str) -> None:
    while processes := _processes(namespace):
        _signal(processes, signal.SIGKILL)
        time.sleep(0.05)


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def _clean() -> None:
    """Remove what an earlier test left when it was killed."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    for name in (line.split()[0] for line in listed.splitlines() if re.match(r"wl\d+\b", line)):
        # A namespace, and its cable with it, is there for as long as something runs in it.
        _kill(name)
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
        subprocess.run(["ip", "link", "delete", name], capture_output=True, check=False)
    subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
