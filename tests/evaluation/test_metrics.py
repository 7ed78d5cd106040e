"""Figures against values known from elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from sacrebleu import corpus_bleu
from scipy.stats import binomtest

from evaluation.image_metrics import changed, picture_scores
from evaluation.intervals import UNIT, Share, mean, plain, share, share_of_groups
from evaluation.probes import OPPOSITES, alternatives, opposite
from evaluation.text import bleu, normalized, rouge
from tests.evaluation.fakes import SIZE, pairs, scene


def test_means_and_shares() -> None:
    # Student's t at 4 degrees of freedom: 2.776.
    found = mean([1.0, 2.0, 3.0, 4.0, 5.0, None, math.nan])
    assert (found.value, found.total) == (3.0, 5)
    half = 2.776445 * math.sqrt(2.5) / math.sqrt(5)
    assert found.interval == pytest.approx((3 - half, 3 + half))
    assert share([True, False, None, True]) == Share(2, 3)
    assert plain(mean([None])) == {"value": None, "low": None, "high": None, "n": 0}
    assert plain(mean([2.0])) == {"value": 2.0, "low": None, "high": None, "n": 1}
    assert str(mean([])) == "none"
    assert mean([1.0, 1.0, 0.0], UNIT).interval[1] == 1


@given(st.integers(1, 200), st.data())
def test_the_interval_of_a_share_is_that_of_scipy(total: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, total))
    expected = binomtest(right, total).proportion_ci(0.95, method="wilson")
    assert Share(right, total).interval == pytest.approx((expected.low, expected.high), abs=1e-6)


@given(st.lists(st.booleans(), min_size=3, max_size=30), st.integers(2, 6))
def test_repeats_within_a_group_are_no_more_evidence(hits: list[bool], times: int) -> None:
    alone = share_of_groups(hits, range(len(hits)))
    repeated = share_of_groups(hits * times, [*range(len(hits))] * times)
    assert (repeated.value, repeated.total) == (alone.value, times * len(hits))
    assert repeated.interval == pytest.approx(alone.interval)


def test_the_interval_of_groups_is_about_that_of_a_bootstrap_over_groups() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, 150)
    # Each group has a rate of its own, so its samples agree more often than those of different groups.
    groups = [list(rng.random(size) < rate) for size, rate in zip(sizes, rng.beta(2, 1, 150), strict=True)]
    named = [(hit, number) for number, group in enumerate(groups) for hit in group]
    found = share_of_groups([hit for hit, _ in named], [number for _, number in named])
    drawn = [[groups[index] for index in rng.integers(0, 150, 150)] for _ in range(4000)]
    means = [sum(map(sum, one)) / sum(map(len, one)) for one in drawn]
    assert found.interval == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.01)
    independent = Share(found.right, found.total).interval
    assert found.interval[0] < independent[0] - 0.01
    assert found.interval[1] > independent[1] + 0.01


@pytest.mark.parametrize("hit", [True, False])
def test_where_all_agree_every_group_counts_once(hit: bool) -> None:
    assert share_of_groups([hit] * 40, [number // 4 for number in range(40)]).interval == (Share(10 * hit, 10).interval)
    assert math.isnan(share_of_groups([], []).interval[0])


def test_text() -> None:
    assert normalized(" The red  Square moves. ") == "the red square moves"
    # One word of three is common on either side; as a sequence as well.
    assert rouge("moves it left", "left the room") == pytest.approx({"rouge1": 1 / 3, "rougeL": 1 / 3})
    truths = ["the red shape moves left now", "it gets darker and darker"]
    named = ["the red shape moves right now", "it gets darker and darker"]
    figure = bleu(truths, named)
    assert figure.value == pytest.approx(corpus_bleu(named, [truths]).score)
    assert figure.interval[0] < figure.interval[1]
    assert bleu(truths, truths).value == pytest.approx(100)
    assert bleu([], []).total == 0


def test_pictures_of_what_happened_of_obs_and_of_noise() -> None:
    obs, next_obs = pairs()
    noise = np.random.default_rng(0).integers(-6, 7, obs.shape)
    for row in picture_scores(obs, next_obs, next_obs, obs):
        assert row["changed_psnr_db"] == row["unchanged_psnr_db"] == pytest.approx(58.92, abs=0.01)
        assert row["changed_ssim"] == pytest.approx(1)
        assert (row["l1"], row["copied"]) == (0, False)
    shown = (obs + noise).clip(0, 255).astype(np.uint8)
    for row in picture_scores(obs, next_obs, shown, obs):
        assert row["copied"]
        assert row["changed_psnr_db"] < 10
        assert 30 < row["unchanged_psnr_db"] < 45
        assert row["changed_ssim"] < 0.3
    # A tokenizer that shows obs dimmer: a copy of that is a copy, what is as bright as obs is not.
    dim = (obs * 0.8).astype(np.uint8)
    assert all(row["copied"] for row in picture_scores(obs, next_obs, dim, dim))
    assert not any(row["copied"] for row in picture_scores(obs, next_obs, next_obs, dim))


def test_regions_against_a_direct_computation() -> None:
    obs, next_obs = pairs()
    predicted = np.random.default_rng(1).integers(0, 256, obs.shape, dtype=np.uint8)
    masks = changed(obs, next_obs)
    for i, row in enumerate(picture_scores(obs, next_obs, predicted, obs)):
        errors: dict[bool, list[int]] = {True: [], False: []}
        for y in range(SIZE):
            for x in range(SIZE):
                errors[bool(masks[i, y, x])] += [
                    (int(next_obs[i, y, x, c]) - int(predicted[i, y, x, c])) ** 2 for c in range(3)
                ]
        for name, is_changed in (("changed_psnr_db", True), ("unchanged_psnr_db", False)):
            error = sum(errors[is_changed]) / len(errors[is_changed])
            assert row[name] == pytest.approx(10 * math.log10(255**2 / error))
        assert masks[i, 12:20, 12:20].sum() + masks[i].sum() > 8 * 8


def test_a_pair_in_which_nothing_changes_has_no_changed_region() -> None:
    obs = scene()[None]
    (row,) = picture_scores(obs, obs, obs, obs)
    assert row["changed_psnr_db"] is row["changed_ssim"] is row["copied"] is None
    other = np.zeros_like(obs)
    (row,) = picture_scores(obs, other, obs, obs)
    assert row["unchanged_psnr_db"] is None


def test_opposites() -> None:
    assert opposite("Opening the left door") == "closing the right door"
    assert opposite("it jumps") is None
    assert all(OPPOSITES[OPPOSITES[word]] == word for word in OPPOSITES)


@hypothesis(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from(["it jumps", "It jumps!", "it runs", "the cat runs away", "the door opens"]), min_size=1),
    st.integers(0, 3),
)
def test_alternatives_are_other_actions(actions: list[str], seed: int) -> None:
    found = alternatives(actions, seed)
    assert found == alternatives(actions, seed)
    distinct = {normalized(action) for action in actions}
    for action, other in zip(actions, found, strict=True):
        assert (other.random is None) == (len(distinct) == 1)
        if other.random is not None:
            assert normalized(other.random) in distinct - {normalized(action)}
        if action == "the door opens":
            assert other.counterfactual == "the door closes"
        elif other.counterfactual is not None:
            assert normalized(other.counterfactual) in distinct - {normalized(action)}
        if action == "the cat runs away" and "it runs" in distinct:
            assert other.counterfactual == "it runs"
