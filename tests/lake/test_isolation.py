"""The decode process may hang, crash or starve; the caller only ever sees a result or one clear error."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from lake.errors import ChildLost
from lake.isolation import Isolated, opened


@pytest.fixture(scope="module")
def isolated() -> Iterator[Isolated]:
    with Isolated(timeout_s=2) as child:
        yield child


def test_result_and_state_of_one_child(isolated: Isolated) -> None:
    assert isolated.call(os.getpid) == isolated.call(os.getpid) != os.getpid()


def test_an_exception_of_the_function_is_raised_once_as_it_is(isolated: Isolated) -> None:
    with pytest.raises(ZeroDivisionError):
        isolated.call(divmod, 1, 0)


@pytest.mark.parametrize(
    ("function", "args", "said"),
    [
        (time.sleep, (3600,), "killed after hanging for 2 s, then killed after hanging for 2 s"),
        (ctypes.string_at, (0,), "SIGSEGV"),
        (bytearray, (1 << 40,), "out of memory"),
        (os._exit, (7,), "code 7"),
    ],
    ids=["hang", "segfault", "memory", "exit"],
)
def test_a_lost_child_is_named_and_replaced(isolated: Isolated, function, args, said) -> None:
    with pytest.raises(ChildLost, match=said):
        isolated.call(function, *args)
    assert isolated.call(abs, -3) == 3


def test_what_a_child_imports_is_not_time_of_its_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_to_import.py").write_text(
        "import multiprocessing, time\n"
        "if multiprocessing.parent_process() is not None:\n    time.sleep(3)\n"
        "def answer():\n    return 42\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import slow_to_import

    with Isolated(timeout_s=2) as child:
        assert child.call(slow_to_import.answer) == 42


def _die_once(marker: str) -> str:
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def test_a_child_killed_once_is_retried(isolated: Isolated, tmp_path: Path) -> None:
    assert isolated.call(_die_once, str(tmp_path / "died")) == "done"


def test_a_child_killed_between_two_calls_is_replaced(isolated: Isolated) -> None:
    for _ in range(3):
        child = isolated.call(os.getpid)
        os.kill(child, signal.SIGKILL)
        assert isolated.call(abs, -3) == 3


def test_the_child_dies_with_its_parent() -> None:
    program = (
        "import os, time\n"
        "from lake.isolation import Isolated\n"
        "child = Isolated(timeout_s=600)\n"
        "print(child.call(os.getpid), flush=True)\n"
        "child.call(time.sleep, 600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    child.wait(timeout=60)


def test_a_child_does_not_run_the_script_of_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    # As people write scripts: without a guard.
    script.write_text("from lake.isolation import Isolated\nprint('run')\nprint(Isolated(600).call(abs, -3))\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("run\n3\n", "")


def _opened_after(opening_s: float, rest_s: float) -> str:
    time.sleep(opening_s)
    opened()
    time.sleep(rest_s)
    return "done"


@pytest.mark.slow
def test_the_limit_counts_from_when_the_call_says_that_it_has_opened() -> None:
    with Isolated(timeout_s=1, attempts=1, opening_s=3) as child:
        assert child.call(_opened_after, 1.5, 0.5) == "done"
        for opening_s, rest_s, ending, said in ((0.1, 60, "hung", "for 1 s"), (60, 0, "not open", "for 3 s")):
            with pytest.raises(ChildLost, match=f"lost 1 times: killed after hanging {said}") as lost:
                child.call(_opened_after, opening_s, rest_s)
            assert lost.value.ending == ending


def test_a_child_that_cannot_begin_is_not_up() -> None:
    with Isolated(timeout_s=2, first=partial(divmod, 1, 0)) as child:
        with pytest.raises(ZeroDivisionError):
            child.start()
        assert not child.is_up
        with pytest.raises(ZeroDivisionError):
            child.call(abs, -3)
