from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from bench.claims.__main__ import done, once
from bench.claims.data import Sizes, named, training_data
from bench.claims.report import CANDIDATES, CLAIMS, MAIN, Found, write_report
from bench.claims.stages import Labels, fitted_policy

WORLDS = ["labeled", MAIN, f"{MAIN}, plain loss", "few", "few + verified", "few + unfiltered"]


def leave(work: Path, seed: int) -> Found:
    """Write the files that `run` leaves for a seed, with random contents."""
    folder = work / f"seed-{seed}"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for world in WORLDS:
        n = 8 if world == MAIN else 4
        path = folder / f"predictions {world}.npz"
        hits, errors = rng.random((20, n)) < 0.4, rng.random((2, 20, n))
        scores = hits + rng.normal(size=(20, n))
        pixels = rng.integers(100, 200, (20, 2))
        np.savez(path, hits=hits, scores=scores, changed=errors[0], unchanged=errors[1], pixels=pixels)
        done(path).touch()
    for name in ("good", "weak"):
        (folder / f"names {name}.json").write_text(json.dumps([True, False, True, True]))
        labels = {"right": 0.6, "accepted and right": 0.9, "accepted share": 0.3, "policy": {}, "actions": []}
        (folder / f"labels {name}.json").write_text(json.dumps(labels))
    return Found(seed, folder)


def test_a_report_is_of_all_finished_seeds(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="0 seeds are finished"):
        write_report(tmp_path, tmp_path / "claims.json", tmp_path / "claims.svg")
    seeds = [leave(tmp_path, seed) for seed in range(3)]
    (tmp_path / "seed-7").mkdir()
    write_report(tmp_path, tmp_path / "claims.json", tmp_path / "claims.svg")
    content = json.loads((tmp_path / "claims.json").read_text())
    assert content["seeds"] == [0, 1, 2]
    assert content["claims"].keys() == CLAIMS.keys()
    claim = content["claims"]["c"]
    verified, unfiltered = (
        np.array([seed.shows(f"few + {name}") for seed in seeds]) for name in ("verified", "unfiltered")
    )
    assert claim["difference"]["value"] == pytest.approx((verified - unfiltered).mean())
    assert claim["difference"]["low"] < claim["difference"]["value"] < claim["difference"]["high"]
    svg = (tmp_path / "claims.svg").read_text()
    write_report(tmp_path, tmp_path / "claims.json", tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == svg


def test_a_verifier_is_between_chance_and_all_knowing(tmp_path: Path) -> None:
    seed = leave(tmp_path, 0)
    assert seed.best_of(1) == seed.any_of(1) == pytest.approx(seed.shows(MAIN))
    for n in CANDIDATES[1:]:
        assert seed.shows(MAIN) < seed.best_of(n) <= seed.any_of(n)


def test_thresholds_reach_the_precision_where_it_can_be_reached() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(-1, 0, 300)
    right = rng.random(300) < 1 + confidence
    labels = Labels(
        ["left" if is_right else "right" for is_right in right],
        [{"confidence": float(c), "direction": 1.0, "copy": 1.0, "text": 1.0} for c in confidence],
    )
    policy = fitted_policy(labels, ["left"] * 300, 0.8)
    accepted = [action for action in labels.accepted(policy) if action is not None]
    assert accepted.count("left") >= 0.8 * len(accepted)
    assert len(accepted) > 50
    hopeless = fitted_policy(labels, ["up"] * 300, 0.8)
    assert sum(action is not None for action in labels.accepted(hopeless)) == 30


def test_pairs_of_a_seed_are_told_apart(tmp_path: Path) -> None:
    sizes = Sizes(labeled=30, few=10, calibration=20, unlabeled=25)
    data, again, other = (training_data(seed, sizes) for seed in (0, 0, 1))
    assert [len(p.actions) for p in (data.labeled, data.few, data.calibration, data.unlabeled)] == [30, 10, 20, 25]
    assert data.labeled.actions == again.labeled.actions
    assert data.labeled.actions != other.labeled.actions
    shown = [{frame.tobytes() for frame in pairs.frames} for pairs in (data.labeled, data.calibration, data.unlabeled)]
    assert not any(one & other for one, other in combinations(shown, 2))
    assert data.few.actions == data.labeled.actions[:10]
    some = named(data.unlabeled, [None, "it gets darker", *[None] * 23])
    assert some.actions == ["it gets darker"]
    assert np.array_equal(some.index, data.unlabeled.index[1:2])


def test_what_was_half_made_is_made_again(tmp_path: Path) -> None:
    path, made = tmp_path / "a thing", []

    def make() -> None:
        made.append(1)
        path.write_text("half")
        if len(made) == 1:
            raise KeyboardInterrupt
        path.write_text("whole")

    with pytest.raises(KeyboardInterrupt):
        once(path, make)
    once(path, make)
    once(path, make)
    assert path.read_text() == "whole"
    assert len(made) == 2
