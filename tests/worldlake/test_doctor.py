"""`worldlake doctor` tells what is wrong with a machine, and never falls over it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lake.schemas import TABLES
from lake.storage import StorageConfig
from lake.tables import Lake
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


def test_a_lake_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    assert findings(str(tmp_path / "some" / "lake"))["lake"].level == "fine"
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    found = findings(str(tmp_path / "file" / "lake"))["lake"]
    assert found.level == "stops"
    assert "file" in found.found
