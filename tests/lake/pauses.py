"""A call beside the test that stands still at a line, as a process does that was stopped or waits for its disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest


class Paused:
    """A call in a thread of its own that waits where it first calls a function (`owner.name`), until `resume`."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        owner: Any,
        name: str,
        call: Callable[[], object],
        when: Callable[..., bool] = lambda *args, **options: True,
    ) -> None:
        self.error: BaseException | None = None
        self._stands, self._may_go = threading.Event(), threading.Event()
        real = getattr(owner, name)

        def stop(*args: Any, **options: Any) -> Any:
            if threading.current_thread() is self._thread and not self._stands.is_set() and when(*args, **options):
                self._stands.set()
                assert self._may_go.wait(60)
            return real(*args, **options)

        def run() -> None:
            try:
                call()
            except BaseException as error:
                self.error = error

        monkeypatch.setattr(owner, name, stop)
        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        while not self._stands.wait(0.05):
            assert self._thread.is_alive(), f"ended before {name}: {self.error}"

    def resume(self) -> BaseException | None:
        """Let it run to its end; returns what it raised."""
        self._may_go.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.error
