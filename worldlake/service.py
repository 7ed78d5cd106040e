"""Run a service from the options of `worldlake serve`."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from cluster.connect import start_ray
from cluster.signals import draining
from labeling.labeler import LabelerSettings
from lake.errors import Refused
from lake.retry import Schedule, retry
from lake.tables import Lake
from models.settings import ModelSettings, WorldSettings
from serve.load_shedding import environment
from serve.run import plan, session, start, stop
from serve.settings import ServeSettings
from worldlake import console

_PORT = Schedule((0.5,), patience_s=20)
"""The processes of a service that was killed let go of its port some seconds later."""


def service_settings(
    model: ModelSettings,
    policy: str | None,
    world: WorldSettings,
    replicas: str,
    allow: list[str] | None,
) -> ServeSettings:
    """Return the settings of a service from options.

    Raises:
        Refused: a value is impossible.
    """
    least, dash, most = replicas.partition("-")
    if not least.isdecimal() or (dash and not most.isdecimal()) or not 1 <= int(least) <= int(most or least):
        raise Refused(f"--replicas {replicas!r}: give a number, or two with a dash, such as 1-4")
    return ServeSettings(
        labeler=LabelerSettings(model=model),
        policy=policy or ("builtin" if model.name == "builtin" else "default"),
        world=None if world.name == "none" else world,
        replicas=(int(least), int(most or least)),
        sources=tuple(allow or ()),
    )


def run_service(lake: Lake, settings: ServeSettings, host: str, port: int) -> None:
    """Serve until a signal comes. Raises Refused where that cannot be."""
    has_cluster = bool(os.environ.get("RAY_ADDRESS"))
    if not has_cluster:
        _refuse_taken(host, port)
    lake.storage.check(lake.uri)
    key, token = session(lake, host) or (None, None)
    # A cluster that runs already was started with these, or its proxies refuse nothing.
    os.environ.update(environment(settings))
    with draining() as stopped:
        # A cluster is asked for its GPUs; Ray on this machine has this machine's, and what cannot be is refused before.
        if has_cluster:
            start_ray()
        checked = plan(lake, settings, key)
        start_ray()
        if stopped.is_set():
            return
        start(checked, host, port)
        console.out.print(
            f"labeler {checked.labeler.id} answers at http://{host}:{port} (API: http://{host}:{port}/openapi.json); "
            "Ctrl-C finishes and ends",
            markup=False,
        )
        if token:
            # In one line: a browser, or a program, is given it as it is.
            console.out.print(f"open http://{host}:{port}/?token={token}", markup=False, soft_wrap=True)
        stopped.wait()
        # Ray ends with this process, or else it was there before: to end Serve first takes seconds, and ends in an
        # error of Ray's about its own controller, which it kills.
        stop(cluster_stays=has_cluster)


def _refuse_taken(host: str, port: int) -> None:
    """Ray's proxies share their ports, so that two services would each get some of the requests."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise Refused(f"--host {host} is not an address of this machine ({error})") from None

    told: set[int] = set()

    def tell(error: Exception, wait_s: float) -> None:
        if port not in told:
            told.add(port)
            console.log.warning("port %s is taken: waiting up to %.0f s for it", port, _PORT.patience_s)

    try:
        retry(lambda: _bind(found), _PORT, _is_taken, tell)
    except OSError as error:
        if _is_taken(error):
            raise Refused(f"another program listens at {host}:{port}: choose another --port") from None
        raise Refused(f"cannot listen at {host}:{port} ({error.strerror}): choose another --host or --port") from None


def _is_taken(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EADDRINUSE


def _bind(found: list[Any]) -> None:
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            # What still holds connections that have ended holds nobody up.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
