"""`worldlake doctor` tells what is wrong with a machine, and never falls over it."""

from __future__ import annotations

import json
import socket
import sys
import tempfile
import threading
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import psutil
import pytest

from lake.schemas import TABLES
from lake.storage import StorageConfig
from lake.tables import Lake
from tests.runs import wait_until
from tests.worldlake.command import worldlake
from worldlake import doctor


def findings(lake: str | None = None) -> dict[str, doctor.Finding]:
    """By what was looked at; the gravest of each."""
    found = doctor.examine(lake, StorageConfig())
    return {one.what: one for one in sorted(found, key=lambda one: ("fine", "note", "stops").index(one.level))}


def test_a_machine_that_works_is_fine(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    lake.create()
    code, output = worldlake("doctor", "--lake", lake.uri, "--json")
    assert code == 0, output
    levels = {one["what"]: one["level"] for one in json.loads(output)}
    assert levels["packages"] == levels["lake"] == levels["ray"] == "fine"
    assert {path.name for path in Path(lake.uri).iterdir()} == {*TABLES}


def test_a_package_that_cannot_be_imported_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ImportError("libavcodec.so.62: cannot open shared object file")

    monkeypatch.setattr(doctor, "_packages", broken)
    found = findings()["packages"]
    assert found.level == "stops"
    assert "libavcodec" in found.found
    assert "install" in found.remedy


def test_extras_that_are_not_installed_are_a_note_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    assert findings()["extras"].level == "fine"
    lines = ['httpx>=0.1; extra == "serve"', 'httpx; extra == "eval"', 'no-such[a]>=2; extra == "eval"', "no-such"]
    monkeypatch.setattr("worldlake.extras.requires", lambda name: lines)
    found = findings()["extras"]
    assert (found.level, found.remedy) == ("note", "pip install 'worldlake[eval]'")
    assert found.found == "not installed: eval (for the commands evaluate)"


@pytest.mark.parametrize("address", ["nonsense://nowhere", "127.0.0.1:1", "a b", "bogus", "127.0.0.1:99999"])
def test_a_ray_address_that_leads_nowhere_is_one_line_at_once(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    code, output = worldlake("doctor", timeout_s=60)
    assert code == 2
    (line,) = [line for line in output.splitlines() if line.startswith("stops")]
    assert "RAY_ADDRESS" in line
    Lake(str(tmp_path)).create()
    code, output = worldlake("label", "--lake", str(tmp_path), timeout_s=60)
    assert (code, len(output.strip().splitlines())) == (2, 1), output
    assert f"RAY_ADDRESS={address}" in output
    assert "unset RAY_ADDRESS" in output


@pytest.mark.slow
def test_a_ray_address_of_something_else_is_one_line_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as web,
    ):
        threading.Thread(target=web.serve_forever, daemon=True).start()
        for port in (silent.getsockname()[1], web.server_port):
            monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
            code, output = worldlake("doctor", timeout_s=60)
            assert code == 2
            assert f"RAY_ADDRESS=127.0.0.1:{port}" in output
        web.shutdown()


@pytest.mark.slow
@pytest.mark.ray
def test_a_cluster_at_ray_address_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # Else the head asks for a token that only its own processes know.
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    start = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--port=0", "--block", "--num-cpus=1"]
    # The names of Ray's sockets leave no room for a folder of pytest's.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        log = Path(folder, "log")
        with log.open("wb") as out:
            options = ["--include-dashboard=false", f"--temp-dir={folder}"]
            head = psutil.Popen([*start, *options], stdout=out, stderr=out)
        try:
            wait_until(lambda: head.poll() is not None or "--address='" in log.read_text())
            address = log.read_text().split("--address='")[1].split("'")[0]
            monkeypatch.setenv("RAY_ADDRESS", address)
            code, output = worldlake("doctor")
            assert (code, f"at {address}" in output) == (0, True), output
        finally:
            for process in [*head.children(recursive=True), head]:
                process.kill()
            head.wait()


def test_a_lake_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    assert findings(str(tmp_path / "some" / "lake"))["lake"].level == "fine"
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    for name in ("file", "file/lake", "/proc/no/lake"):
        found = findings(str(tmp_path / name))["lake"]
        assert found.level == "stops"
        assert name in found.found
        assert "folder" in found.remedy
        assert "credentials" not in found.remedy
