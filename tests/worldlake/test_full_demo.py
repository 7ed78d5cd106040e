from __future__ import annotations

from pathlib import Path

import pytest

from lake.tables import Lake
from tests.worldlake.command import worldlake
from worldlake.full_demo import Amounts, run_full_demo


@pytest.mark.ray
@pytest.mark.long
def test_a_few_labels_become_a_world_model(tmp_path: Path) -> None:
    amounts = Amounts(labeled=3, unlabeled=4, held_out=2, dynamics_steps=5, world_steps=5, candidates=2)
    found = run_full_demo(tmp_path, 0, amounts)
    assert list(found["figures"]) == ["dynamics model", "labeled pairs alone", "with verified labels"]
    assert all(Path(report).stat().st_size > 10_000 for report in found["reports"])
    lake = Lake(str(tmp_path / "seed-0" / "lake"))
    labels = lake.read("triples", ["labeler_id", "dataset", "split"]).to_pylist()
    human = [row for row in labels if row["labeler_id"] == "human:sample-world"]
    assert {row["split"] for row in human} == {"train", "test"}
    # Nothing that is tested was labeled by the model, so nothing of it was trained on.
    assert {row["dataset"] for row in labels if row not in human} <= {"sample-world-unlabeled"}
    trained = [run for run in lake.read("runs", ["kind", "status"]).to_pylist() if run["kind"] == "train"]
    again = run_full_demo(tmp_path, 0, amounts)
    assert again["figures"] == found["figures"]
    assert sum(run["kind"] == "train" for run in lake.read("runs", ["kind"]).to_pylist()) == len(trained)


def test_clips_of_its_own() -> None:
    code, said = worldlake("demo", "--full", "--clips", "3")
    assert (code, "leave out --videos and --clips" in said) == (2, True)
