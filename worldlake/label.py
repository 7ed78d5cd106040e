"""`worldlake label`: from options to a run, with Ray, signals and a time limit around it."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from labeling.labeler import LabelerSettings, resolve_labeler
from labeling.policy import load_policy
from labeling.run import RunSettings, Summary, label
from labeling.sampling import SamplingSettings
from lake.errors import Refused
from lake.tables import Lake
from models.errors import ModelRefused
from models.settings import ModelSettings
from worldlake import console

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_HOST_PORT = re.compile(r"(?:ray://)?(?P<host>\[[\da-fA-F:.%]+\]|[^\s:/@]+):(?P<port>\d{1,5})")
_NODE_LABEL = re.compile(r"([\w./-]+)=([\w.-]+)")
_ADDRESS = "give host:port of the cluster's head (10.0.0.1:6379), or unset RAY_ADDRESS to run on this machine"
# A head that takes longer to accept a connection is not one to work with.
_PROBE_S = 5.0
# Ray speaks gRPC, which is HTTP/2: both sides begin with a SETTINGS frame, type 4 in its fourth byte.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
_ENDED = b"\nworldlake: ended at once; what was committed stays, the same command goes on from there\n"


def labeler_settings(model: dict[str, Any], sampling: dict[str, Any]) -> LabelerSettings:
    """Settings from options.

    Raises:
        Refused, ModelRefused: a value is impossible.
    """
    try:
        chosen = ModelSettings(**model)
    except ModelRefused as error:
        if isinstance(error.__cause__, ValidationError):
            raise _option_refused(error.__cause__) from None
        raise
    return LabelerSettings(model=chosen, sampling=_checked(SamplingSettings, sampling))


def of_method(method: str, options: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Of the options by method those that were given.

    Raises:
        Refused: an option of another method was given.
    """
    for other, values in options.items():
        for name, value in values.items():
            if value is not None and other != method and method in options:
                option = name.replace("_", "-")
                raise Refused(f"--{option} belongs to --method {other}, not to {method}: leave one of them out")
    return {name: value for values in options.values() for name, value in values.items() if value is not None}


def node_label(option: str, text: str | None) -> dict[str, str] | None:
    """A label of Ray's nodes from an option.

    Raises:
        Refused: it is none, or there is no cluster whose nodes could have it.
    """
    if text is None:
        return None
    if not (parts := _NODE_LABEL.fullmatch(text)):
        raise Refused(f"{option} {text!r}: give KEY=VALUE, a label of Ray's nodes such as ray.io/node-group=cpu")
    if not os.environ.get("RAY_ADDRESS"):
        raise Refused(f"{option} chooses among the nodes of a cluster: set RAY_ADDRESS to one, or leave it out")
    return {parts[1]: parts[2]}


def label_command(
    lake: Lake,
    settings: LabelerSettings,
    policy: str,
    run: dict[str, Any],
    *,
    where: str | None = None,
    limit: int | None = None,
    max_hours: float | None = None,
    retry_failed: bool = False,
    take_over: bool = False,
) -> Summary:
    """Run `labeling.run.label` as a command does: Ray started when there is work, signals and `max_hours` drain it."""
    lake.storage.check(lake.uri)
    rules = load_policy(policy)
    chosen = _checked(RunSettings, run)
    labeler = resolve_labeler(settings, _device(chosen))
    with draining(max_hours) as (stop, start_cluster), console.counter("label") as counter:
        return label(
            lake,
            labeler,
            rules,
            chosen,
            where=where,
            limit=limit,
            retry_failed=retry_failed,
            take_over=take_over,
            stop=stop,
            start_cluster=start_cluster,
            progress=lambda counts: counter(counts["videos_finished"] + counts["videos_failed"], counts),
            warn=console.log.warning,
        )


def _device(run: RunSettings) -> str | None:
    """Where the labels of a run are made; None: here, wherever torch finds fit."""
    if not os.environ.get("RAY_ADDRESS"):
        return None
    start_ray()
    from labeling.pipeline import workers

    # Refuses labels that no node has: without its GPUs a model would be another labeler.
    pool = workers(run.decode_workers, run.label_workers, run.worker_cpus, run.decode_on, run.label_on)
    return "cuda" if pool.label_gpus else "cpu"


def start_ray() -> None:
    """Connect to the cluster of RAY_ADDRESS, or start Ray on this machine; once a process.

    Raises:
        Refused: RAY_ADDRESS is no address, or nobody answers there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's C++ core writes to this terminal past every logger; what matters of it comes back as an exception.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Ray Data tells its own story on the same terminal otherwise.
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    import ray

    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _refuse_dead_address(address)
    try:
        ray.init(
            # Not a cluster that happens to run on this machine, which `ray start` leaves a note about.
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        if not address:
            raise
        hint = "a head with token authentication wants RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        raise Refused(f"no Ray cluster at RAY_ADDRESS={address} ({error}): {_ADDRESS}; {hint}") from None
    except OSError as error:
        if "AF_UNIX" not in str(error):
            raise
        raise Refused(
            f"Ray cannot put its sockets into a folder with so long a name ({error}): shorten TMPDIR"
        ) from None
    # It logs the traceback of what it also raises.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def _refuse_dead_address(address: str) -> None:
    """Ask before Ray does: it tries for more than a minute, and its errors are those of its insides."""
    if address in ("auto", "local"):
        return
    parts = _HOST_PORT.fullmatch(address)
    if parts is None:
        raise Refused(f"RAY_ADDRESS={address} is no address: {_ADDRESS}")
    try:
        with socket.create_connection((parts["host"].strip("[]"), int(parts["port"])), _PROBE_S) as connection:
            connection.sendall(_HELLO)
            greeting = connection.recv(9)
    except (OSError, OverflowError, UnicodeError) as error:
        raise Refused(f"nobody answers at RAY_ADDRESS={address} ({error}): {_ADDRESS}") from None
    is_grpc = greeting[3:4] == b"\x04" or os.environ.get("RAY_USE_TLS", "0") != "0"
    if not is_grpc:
        raise Refused(f"what answers at RAY_ADDRESS={address} is no Ray head (its port is 6379): {_ADDRESS}")


@contextmanager
def draining(hours: float | None) -> Iterator[tuple[threading.Event, Callable[[], None]]]:
    """Yield an event that SIGINT, SIGTERM and the time limit set, and a function that starts Ray and keeps it so.

    A second signal ends the process at once.
    """
    stop, asked = threading.Event(), threading.Event()

    def on_signal(number: int, frame: object) -> None:
        # Not `stop`, which the time limit sets as well.
        if asked.is_set():
            os.write(2, _ENDED)
            os._exit(128 + number)
        asked.set()
        stop.set()
        console.log.info("%s: draining; once more ends at once", signal.Signals(number).name)

    def listen() -> None:
        for number in _SIGNALS:
            signal.signal(number, on_signal)

    def start_cluster() -> None:
        start_ray()
        # Again, because Ray puts a handler of its own on SIGTERM, which ends the process at once.
        listen()

    with _restored_signals(), _time_limit(stop, hours):
        listen()
        yield stop, start_cluster


@contextmanager
def _restored_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _time_limit(stop: threading.Event, hours: float | None) -> Iterator[None]:
    """Set `stop` after so many hours."""
    seconds = threading.TIMEOUT_MAX if hours is None else min(hours * 3600, threading.TIMEOUT_MAX)
    timer = threading.Timer(seconds, stop.set)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _checked(model: Any, values: dict[str, Any]) -> Any:
    try:
        return model(**values)
    except ValidationError as error:
        raise _option_refused(error) from None


def _option_refused(error: ValidationError) -> Refused:
    first = error.errors()[0]
    option = ".".join(str(part) for part in first["loc"]).replace("_", "-")
    return Refused(f"--{option}: {first['msg']} (given: {first['input']!r})")
