"""Commands of the documentation work as they stand, against one service."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from lake.tables import Lake
from sample_world.clips import write_folder
from serve.app import build_app
from serve.keys import Keys
from tests.lake.filled import fill
from tests.serve.conftest import InProcess, close, serve
from tests.serve.test_client import listening

Pairs = list[tuple[bytes, bytes, str]]

ROOT = Path(__file__).parents[2]
DOCUMENTED = "http://127.0.0.1:8000"
ANSWERS = {
    "/v1/label": "labels",
    "/v1/label?write=durable": "labels",
    "/v1/predict": "best",
    "/v1/triples?order=newest&limit=3": "triples",
    "/v1/sql": "rows",
}
"""Keys of the answer to each documented request, except the stream of a video."""


@dataclass(frozen=True)
class Service:
    lake: Lake
    environment: dict[str, str]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, models: InProcess) -> Iterator[Service]:
    lake = Lake(str(tmp_path_factory.mktemp("served") / "lake"))
    fill(lake)
    _, key = Keys(lake).create("reader", ("label", "predict", "read"))
    services = serve(lake, models)
    for url in listening(build_app(services)):
        yield Service(lake, {**os.environ, "WORLDLAKE_URL": url, "WORLDLAKE_KEY": key, "KEY": key})
    close(services)


def commands(text: str) -> list[str]:
    """The commands of the console blocks that ask a service."""
    blocks = re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in re.split(r"^\$ ", block, flags=re.MULTILINE) if DOCUMENTED in line]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("curl"), reason="curl is missing")
def test_every_curl_of_the_documentation_is_answered(service: Service, pairs: Pairs, tmp_path: Path) -> None:
    for name, content in zip(("before.jpg", "after.jpg"), pairs[0][:2], strict=True):
        (tmp_path / name).write_bytes(content)
    write_folder(tmp_path, [83], frames=60)[0].rename(tmp_path / "clip.mp4")
    # An answer that is an error ends the command with one.
    (tmp_path / ".curlrc").write_text("fail-with-body\nsilent\nshow-error\n")
    environment = {**service.environment, "CURL_HOME": str(tmp_path)}
    asked = set()
    for command in commands((ROOT / "docs/how-to/serving.md").read_text()):
        own = command.replace(DOCUMENTED, service.environment["WORLDLAKE_URL"])
        done = subprocess.run(["bash", "-c", own], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        (path,) = re.findall(rf"{DOCUMENTED}([^\s']+)", command)
        asked.add(path)
        if path == "/v1/label/video":
            assert done.stdout.strip().split("\n\n")[-1].startswith("event: done")
        else:
            assert json.loads(done.stdout)[ANSWERS[path]], (command, done.stdout)
    assert asked == {*ANSWERS, "/v1/label/video"}


@pytest.mark.slow
def test_the_example_asks(service: Service, pairs: Pairs, tmp_path: Path) -> None:
    for name, content in zip(("before.jpg", "after.jpg"), pairs[0][:2], strict=True):
        (tmp_path / name).write_bytes(content)
    words = [str(ROOT / "examples/ask_a_service.py"), service.environment["WORLDLAKE_URL"], "before.jpg", "after.jpg"]
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=service.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{pairs[0][2]} (")
    assert (tmp_path / "predicted.png").stat().st_size > 100


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLDLAKE_URL", "WORLDLAKE_KEY"):
        monkeypatch.setenv(name, service.environment[name])
    before = service.lake.table("triples").version()
    notebook = nbformat.read(ROOT / "docs/tutorial/serving.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:
        cell.outputs = []
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    assert all(cell.outputs for cell in cells[1:])
    assert service.lake.table("triples").version() > before
