"""Running a function where a hang or a crash inside a codec can be survived.

The process pools of the standard library cannot stop one call, and those that can share one pipe and its lock among
their processes: a process killed while it holds that lock stops all others for ever. Here each child has its own pipe.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar

from lake.errors import ChildLost, Ending

Item = TypeVar("Item")
Result = TypeVar("Result")

# Once more, because a kill or an empty memory may have come from outside; not more often, because a file that does it
# twice does it every time.
ATTEMPTS = 2
# Address space of the child. It fails inside before the kernel starts to kill processes outside; a decoder of 8K video
# with all its reference frames stays under half of it.
MEMORY_BYTES = 4 << 30


# A child that starts imports what its first call needs, some of it for seconds on a busy machine: not the call's fault.
START_S = 60.0


_starting = threading.Lock()

_OPENED = b""
_parent: Connection | None = None
"""In a child: the pipe to its parent."""


def opened() -> None:
    """Tell the parent that preparations are over: the call has `timeout_s` from here on. Elsewhere it does nothing."""
    if _parent is not None:
        _parent.send_bytes(_OPENED)


class Isolated:
    """One child process that runs calls one at a time, and is replaced when it hangs or dies.

    State that the called functions keep in their modules lives on from call to call, until then. The child starts with
    the first call and ends with `close` or with this process, however that dies.
    """

    def __init__(
        self,
        timeout_s: float,
        memory_bytes: int = MEMORY_BYTES,
        *,
        attempts: int = ATTEMPTS,
        opening_s: float | None = None,
        first: Callable[[], object] | None = None,
        first_s: float = START_S,
    ) -> None:
        """Allow `timeout_s` seconds of wall clock for an attempt, once the child is up, and `memory_bytes` of space.

        With `opening_s` a call has that many seconds until it calls `opened`, and `timeout_s` from then on. A new child
        runs `first`, for at most `first_s`, before it is up.
        """
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._attempts = attempts
        self._opening_s = opening_s
        self._first, self._first_s = first, first_s
        self._child: _Child | None = None
        self._starting = threading.Lock()
        self._closed = False

    @property
    def is_up(self) -> bool:
        """True if the child has started and is alive."""
        return self._child is not None and self._child.process.is_alive()

    def start(self) -> None:
        """Start the child where there is none, and run `first`. Raises what that raises; ChildLost if it is lost.

        A call meanwhile waits until the child is up.
        """
        try:
            if not self._closed:
                self._started()
        except _Ended as ended:
            raise ChildLost(f"the process was lost: {ended}", ended.ending) from None

    def call(self, function: Callable[..., Result], *args: object) -> Result:
        """Return `function(*args)`, computed in the child; all of it must pickle.

        Raises what the function raises, at once, except MemoryError; raises ChildLost if every attempt hangs, dies or
        runs out of memory, or if this was closed.
        """
        endings: list[str] = []
        ending: Ending = "died"
        while len(endings) < self._attempts and not self._closed:
            try:
                child = self._started(function)
                result: Result = child.call(function, args, self._timeout_s, self._opening_s)
            except _Ended as ended:
                endings.append(str(ended))
                ending = ended.ending
            else:
                return result
        raise ChildLost(f"the process was lost {len(endings)} times: {', then '.join(endings)}", ending)

    def kill(self) -> None:
        """End the child in the middle of a call, which raises ChildLost where it has no attempt left."""
        if self._child is not None:
            self._child.process.kill()

    def _started(self, *imports: Callable[..., object]) -> _Child:
        with self._starting:
            if self._child is not None and self._child.process.is_alive():
                return self._child
            child = self._child = _Child(self._memory_bytes)
            try:
                child.call(_import, imports, START_S)
                if self._first is not None:
                    child.call(self._first, (), self._first_s)
            except BaseException:
                # Alive, it would be taken for one that is up.
                child.end()
                raise
            if self._closed:
                child.end()
            return child

    def close(self) -> None:
        """Stop the child, without waiting for a call that is still running."""
        self._closed = True
        if self._child is not None:
            self._child.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class IsolatedPool:
    """Isolated processes that are started when work first needs them; each does one piece of work at a time."""

    def __init__(self, size: int, timeout_s: float) -> None:
        self.size = size
        self._children = [Isolated(timeout_s) for _ in range(size)]
        self._threads = ThreadPoolExecutor(size)
        self._idle: SimpleQueue[Isolated] = SimpleQueue()
        for child in self._children:
            self._idle.put(child)

    def submit(self, work: Callable[[Isolated, Item], Result], item: Item) -> Future[Result]:
        """Call `work(process, item)` on a thread, with a process that nothing else uses meanwhile."""
        return self._threads.submit(self._run, work, item)

    def map(self, work: Callable[[Isolated, Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield `work(process, item)` of every item, in order."""
        return self._threads.map(partial(self._run, work), items)

    def _run(self, work: Callable[[Isolated, Item], Result], item: Item) -> Result:
        child = self._idle.get()
        try:
            return work(child, item)
        finally:
            self._idle.put(child)

    def close(self) -> None:
        """End the processes, also in the middle of a call, and drop what has not begun."""
        for child in self._children:
            child.close()
        self._threads.shutdown(cancel_futures=True)


class _Ended(Exception):
    """How a child ended in the middle of a call."""

    def __init__(self, message: str, ending: Ending) -> None:
        super().__init__(message)
        self.ending = ending


class _Child:
    def __init__(self, memory_bytes: int) -> None:
        # Spawned: a fork of a process with threads (Ray, CUDA, gRPC) may deadlock.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, memory_bytes), daemon=True)
        with _hidden_main():
            self.process.start()
        # From here on only the child holds its end, so that its death is the end of the stream.
        theirs.close()

    def call(
        self,
        function: Callable[..., Any],
        args: tuple[object, ...],
        timeout_s: float,
        opening_s: float | None = None,
    ) -> Any:
        """Return `function(*args)`. Raises what it raises, and _Ended for a child that is gone then."""
        limit_s = opening_s or timeout_s
        ending: Ending = "not open" if opening_s else "hung"
        # Sending and receiving block as well while the child is stopped, so that a limit on waiting would not do.
        alarm = _Alarm(limit_s, self.process)
        try:
            self._connection.send((function, args))
            while (answer := self._connection.recv_bytes()) == _OPENED:
                alarm.cancel()
                limit_s, ending = timeout_s, "hung"
                alarm = _Alarm(limit_s, self.process)
        except (EOFError, OSError):
            self.end()
            if alarm.has_rung:
                raise _Ended(f"killed after hanging for {limit_s:g} s", ending) from None
            raise _Ended(_describe_exit(self.process.exitcode), "died") from None
        finally:
            alarm.cancel()
        succeeded, result = pickle.loads(answer)  # noqa: S301 - of a process of ours
        if succeeded:
            return result
        if isinstance(result, MemoryError):
            self.end()
            raise _Ended("ran out of memory", "memory")
        raise result

    def end(self) -> None:
        self.process.kill()
        self.process.join()


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Keep a new child from importing the main module: it would run a user's script once more, from the top."""
    with _starting:
        main = vars(sys.modules["__main__"])
        found: dict[str, Any] = {name: main[name] for name in ("__spec__", "__file__") if name in main}
        main.update(dict.fromkeys(found))
        try:
            yield
        finally:
            main.update(found)


class _Alarm:
    """Kills a process after some seconds, unless it is cancelled before."""

    def __init__(self, seconds: float, process: BaseProcess) -> None:
        self.has_rung = False
        self._process = process
        self._timer = threading.Timer(seconds, self._ring)
        self._timer.daemon = True
        self._timer.start()

    def _ring(self) -> None:
        self.has_rung = True
        self._process.kill()

    def cancel(self) -> None:
        self._timer.cancel()


def limit_memory(kind: int, size: int) -> None:
    """Limit this process to `size` bytes of a kind (`resource.RLIMIT_...`), or to less if its hard limit is lower."""
    _, most = resource.getrlimit(kind)
    size = size if most == resource.RLIM_INFINITY else min(size, most)
    resource.setrlimit(kind, (size, size))


def _import(*functions: Callable[..., Any]) -> None:
    """Nothing: to be handed a function is to import its module."""


def _describe_exit(code: int | None) -> str:
    return f"died of {signal.Signals(-code).name}" if code and code < 0 else f"exited with code {code}"


def _serve(connection: Connection, memory_bytes: int) -> None:
    """Run the child: answer calls, one at a time, until the parent closes the pipe."""
    global _parent
    _parent = connection
    # Ctrl-C reaches every process of a terminal; the parent decides what becomes of this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limit_memory(resource.RLIMIT_AS, memory_bytes)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    while True:
        try:
            function, args = connection.recv()
        except EOFError:
            return
        connection.send_bytes(_outcome(function, args))


def _outcome(function: Callable[..., Any], args: tuple[object, ...]) -> bytes:
    try:
        return pickle.dumps((True, function(*args)))
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))
        try:
            pickled = pickle.dumps((False, error))
            pickle.loads(pickled)  # noqa: S301 - our own bytes; some errors pickle and cannot be read back
        except Exception:
            return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
        return pickled


def _die_with_parent() -> None:
    """End this process in the middle of a call, too, when its parent is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
