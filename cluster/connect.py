"""Connecting to Ray: the cluster of RAY_ADDRESS, or one on this machine."""

from __future__ import annotations

import atexit
import logging
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.signals import diverted
from lake.errors import Refused

if TYPE_CHECKING:
    from ray.job_config import JobConfig

_HOST_PORT = re.compile(r"(?:ray://)?(?P<host>\[[\da-fA-F:.%]+\]|[^\s:/@]+):(?P<port>\d{1,5})")
_REMEDY = "give host:port of the cluster's head (10.0.0.1:6379), or unset RAY_ADDRESS to run on this machine"
# A head that takes longer to accept a connection is too slow to work with.
_PROBE_S = 5.0
# Ray speaks gRPC, which is HTTP/2: both sides begin with a SETTINGS frame, type 4 in its fourth byte.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)

_connecting = threading.Lock()
"""Held while Ray starts: threads may call `start_ray` at once."""


def start_ray() -> None:
    """Connect to the cluster of RAY_ADDRESS, or start Ray on this machine; once per process, from any thread.

    Signal handlers stay as they were.

    Raises:
        Refused: RAY_ADDRESS is malformed, no cluster answers there, or the path of Ray's sockets is too long.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's C++ core writes to this terminal past every logger; what matters of it comes back as an exception.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    with _connecting:
        _start()


def _start() -> None:
    import ray

    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _refuse_dead_address(address)
    try:
        with _kept_handlers(), _without_greeting():
            _in_a_thread_that_stays(
                ray.init,
                # Not a cluster that happens to run on this machine, which `ray start` leaves a note about.
                address=address or "local",
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                # A client's (ray://) is made on the cluster.
                job_config=None if address and address.startswith("ray://") else _ours_first(),
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        if not address:
            raise
        hint = "a head with token authentication wants RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        raise Refused(f"no Ray cluster at RAY_ADDRESS={address} ({error}): {_REMEDY}; {hint}") from None
    except OSError as error:
        if "AF_UNIX" not in str(error):
            raise
        raise Refused(f"the path of Ray's sockets is too long ({error}): set TMPDIR to a shorter path") from None
    if not address:
        _end_idle_processes()
    # Ray's own handler, which runs after this one and then has nothing to do, first sleeps half a second.
    atexit.register(ray.shutdown)
    _silence_ray_data()


class _OursLast(list[str]):
    """Folders that each process of Ray puts before all others that it imports from, one after the other."""

    def extend(self, folders: Iterable[str]) -> None:
        super().extend([*folders, str(Path(__file__).resolve().parents[1])])


def _ours_first() -> JobConfig:
    """Have our packages found first: Ray adds the working directory, where many have a `models` of their own."""
    from ray.job_config import JobConfig

    config = JobConfig()
    config._py_driver_sys_path = _OursLast()
    return config


def _end_idle_processes() -> None:
    """End what Ray starts beside a cluster of one machine and has no option against.

    These add nodes, forward logs and report usage. Starting them up takes a second of CPU, ending them another of wall.
    """
    # A Ray that has these parts elsewhere only takes a second longer.
    with suppress(ImportError, AttributeError):
        from ray._private.worker import _global_node

        for end in (_global_node.kill_monitor, _global_node.kill_log_monitor, _global_node.kill_dashboard):
            end(check_alive=False)


def _in_a_thread_that_stays(call: Callable[..., object], **arguments: object) -> None:
    """Call in the main thread, or else in one that never ends.

    Ray's processes die with the thread that started them, and this process with Ray's.
    """
    if threading.current_thread() is threading.main_thread():
        call(**arguments)
        return
    called: Future[object] = Future()

    def run() -> None:
        try:
            called.set_result(call(**arguments))
        except BaseException as error:
            called.set_exception(error)
        threading.Event().wait()

    threading.Thread(target=run, name="ray", daemon=True).start()
    called.result()


def _silence_ray_data() -> None:
    # It logs the traceback of what it also raises.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    # It warns of more workers than there are videos.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"ray\.data\.")
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


@contextmanager
def _kept_handlers() -> Iterator[None]:
    """Restore the handler of SIGTERM, for which Ray puts in one that ends the process at once."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _without_greeting() -> Iterator[None]:
    """Drop the line in which Ray's C++ core says, past every logger, that RAY_BACKEND_LOG_LEVEL silences it.

    Whatever else is written to standard error meanwhile comes out at the end.
    """
    with tempfile.TemporaryFile() as held:
        try:
            sys.stderr.flush()
            with diverted(held.fileno()):
                yield
                sys.stderr.flush()
        finally:
            held.seek(0)
            for line in held:
                if b"RAY_BACKEND_LOG_LEVEL" not in line:
                    os.write(2, line)


def _refuse_dead_address(address: str) -> None:
    """Ask before Ray does: it tries for more than a minute, and its errors are those of its internals."""
    if address in ("auto", "local"):
        return
    parts = _HOST_PORT.fullmatch(address)
    if parts is None:
        raise Refused(f"RAY_ADDRESS={address} is not an address: {_REMEDY}")
    try:
        with socket.create_connection((parts["host"].strip("[]"), int(parts["port"])), _PROBE_S) as connection:
            connection.sendall(_HELLO)
            greeting = connection.recv(9)
    except (OSError, OverflowError, UnicodeError) as error:
        raise Refused(f"nothing answers at RAY_ADDRESS={address} ({error}): {_REMEDY}") from None
    is_grpc = greeting[3:4] == b"\x04" or os.environ.get("RAY_USE_TLS", "0") != "0"
    if not is_grpc:
        raise Refused(f"RAY_ADDRESS={address} answers, but is not a Ray head (its port is 6379): {_REMEDY}")
