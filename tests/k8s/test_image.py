"""The image file: its style, and, in `make test-long`, what its instructions make of an empty root."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.k8s.image import CONTAINERFILE, ROOT, base, build, instructions, run, stages

HADOLINT = Path(sys.executable).with_name("hadolint")


def lint(file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HADOLINT, "--no-color", file], capture_output=True, text=True)


def test_hadolint_has_nothing_to_say() -> None:
    done = lint(CONTAINERFILE)
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_would_speak_up(tmp_path: Path) -> None:
    broken = tmp_path / "Containerfile"
    broken.write_text(CONTAINERFILE.read_text().replace("USER 10001:10001", "RUN sudo id\nRUN pip install torch"))
    assert {"DL3004", "DL3013", "DL3042"} <= set(lint(broken).stdout.split())


def test_the_last_stage_installs_nothing_and_runs_as_nobody() -> None:
    *_, last = stages(instructions(CONTAINERFILE.read_text()))
    assert not [text for name, text in last if name == "RUN" and ("apt" in text or " install" in text)]
    assert ("USER", "10001:10001") in last
    assert [name for name, _ in last if name in ("ADD", "VOLUME", "EXPOSE")] == []
    assert ("ENTRYPOINT", '["worldlake"]') in last


def test_base_image_is_pinned() -> None:
    (argument,) = [text for name, text in instructions(CONTAINERFILE.read_text()) if text.startswith("PYTHON=")]
    assert argument.count(".") == 2
    assert "latest" not in argument


def test_context_holds_what_the_package_is_made_of() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "bench"}
    assert kept == packages | {"constraints.txt", "pyproject.toml", "LICENSE", "README.md"}


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_image_in_an_empty_root(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        pytest.skip("needs root and debootstrap: apt-get install debootstrap")
    root = build(base(tmp_path / "debian"), tmp_path, {"VARIANT": "cpu"})
    environment = {"PATH": "/opt/worldlake/bin:/usr/bin:/bin", "HOME": "/tmp", "OMP_NUM_THREADS": "1"}

    def nobody(*command: str) -> str:
        return run(root, list(command), environment, user=10001)

    assert nobody("worldlake", "--version").startswith("worldlake ")
    # As KubeRay starts Ray.
    assert "/opt/worldlake/bin/ray" in nobody("bash", "-lc", "command -v ray")
    assert nobody("sh", "-c", "command -v gcc cc make pip || true") == ""
    assert nobody("sh", "-c", "touch /opt/worldlake/x /etc/x || touch /tmp/x && ls /tmp") == "x\n"
    # What the pods of a service and of a training import.
    assert nobody("python", "-c", "import training.run, worldlake.serving") == ""
    assert "done in" in nobody("worldlake", "demo", "--clips", "2", "--folder", "/tmp/demo")
