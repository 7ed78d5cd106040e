"""Laws of verdicts: monotone in the bounds, strict about missing evidence, datasets override score by score."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling import policy
from labeling.policy import Bounds, Policy, load_policy
from labeling.stream import LABELED, block
from labeling.verifiers.text import is_usable
from labeling.verify import Verify
from lake.errors import Refused
from lake.scores import NAMES, SCORES

SHIPPED = sorted(path.stem for path in Path(policy.__file__).parent.glob("policies/*.yaml"))

numbers = st.floats(-5, 5)
# Where a bound may stand for every score: outside of the noise around 0.
thresholds = numbers.filter(lambda number: abs(number) >= max(score.noise for score in SCORES))
scores = st.fixed_dictionaries({name: st.none() | numbers for name in NAMES})
bounds = st.tuples(thresholds, thresholds).map(lambda pair: Bounds(min=min(pair), max=max(pair)))
rules = st.dictionaries(st.sampled_from(NAMES), bounds)


@given(rules, scores)
def test_rejected_by_exactly_the_scores_out_of_bounds(default: dict[str, Bounds], row: dict[str, float | None]) -> None:
    reasons = Policy(default=default).reasons(row, "any")
    for name in NAMES:
        score = row[name]
        inside = score is not None and name in default and default[name].min <= score <= default[name].max
        assert (name in reasons) == (name in default and not inside)


@given(rules, rules, scores)
def test_a_data_set_overrides_score_by_score(
    default: dict[str, Bounds], own: dict[str, Bounds], row: dict[str, float | None]
) -> None:
    both = Policy(default=default, datasets={"own": own})
    assert both.reasons(row, "own") == Policy(default={**default, **own}).reasons(row, None)
    assert both.reasons(row, "other") == Policy(default=default).reasons(row, None)


def test_nan_is_no_evidence() -> None:
    assert Policy(default={"copy": Bounds()}).reasons({"copy": math.nan}, None) == ["copy"]


def test_the_id_is_of_the_thresholds() -> None:
    one = Policy(default={"copy": Bounds(min=1), "motion": Bounds(max=1)})
    assert one.id == Policy(default={"motion": Bounds(max=1), "copy": Bounds(min=1.0)}).id
    assert one.id != Policy(default={"copy": Bounds(min=0.1), "motion": Bounds(max=1)}).id


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("default: {copy: {min: 2, max: 1}}", "above"),
        ("default: {copy: {least: 2}}", "least"),
        ("default: {beauty: {min: 0}}", "not a score"),
        ("- 1", "holds list"),
        ("", "is empty.*default: {confidence"),
        ("default: {motion: 3}", "default.motion is 3: give bounds"),
        ("default: 3", "default is 3: give bounds"),
        ("default: {motion: {mn: 1}}", "default.motion has 'mn'; there are min and max"),
        ("default: {motion: {min: .nan}}", "default.motion: nan is not a bound"),
        ("default: {motion: {min: low}}", "default.motion.min is 'low': give a number"),
        ("defaults: {motion: {min: 1}}", "lacks 'default'|has 'defaults'; there are default and datasets"),
        ("default: {}\ndata: {}", "the file has 'data'; there are default and datasets"),
        ("default: [", "YAML"),
        ("default: {direction: {min: 0}}", "default.direction.min is 0, but frames in which nothing changes"),
        ("default: {copy: {min: -0.01}}", "copy.min is -0.01.*use a bound farther from 0"),
        ("default: {motion: {max: 0.0}}", "motion.max is 0"),
        ("default: {}\ndatasets: {robots: {copy: {min: 0.0}}}", "robots.copy.min is 0"),
    ],
)
def test_a_wrong_policy_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(Refused, match=says):
        load_policy(str(path))


@pytest.mark.parametrize("shipped", SHIPPED)
@given(st.floats(-0.09, 0.09), st.floats(-0.09, 0.09))
def test_no_shipped_policy_accepts_what_noise_decides(shipped: str, direction: float, copy: float) -> None:
    """However sure a model is that something happened: 0.09 is the most that unchanged footage was seen to score."""
    perfect = {"motion": 0.01, "camera_motion": 0.0, "confidence": 0.0, "text": 1.0}
    assert "copy" in load_policy(shipped).reasons({**perfect, "direction": direction, "copy": copy}, None)
    assert load_policy(shipped).reasons({**perfect, "direction": 1.0, "copy": 1.0}, None) == []


def test_rows_that_are_no_pairs_pass_through_the_stage() -> None:
    rows = [{"video_id": "v", "sampled": 0}, {"video_id": "v", "triple_id": "t", "copy": 1.0, "text": 1.0}]
    found = Verify(Policy(default={"copy": Bounds(min=0.5)}))(block(rows, LABELED))
    assert found["video_id"].to_pylist() == ["v", "v"]
    assert found["reasons"].to_pylist() == [["copy"], []]
    assert found.schema.field("reasons").type == pa.list_(pa.string())


@pytest.mark.parametrize(
    ("action", "usable"),
    [
        ("the red circle moves left", 1),
        ("Pick up the cup.", 1),
        ("", 0),
        ("   ", 0),
        ("...", 0),
        ("I'm sorry, I can't help with that", 0),
        ("It is not possible to see a change", 0),
        ("I cannot determine the action", 0),
        ("cannot tell what happens", 0),
        ("the the the the", 0),
        ("open the door open the door open the door", 0),
        ("word " * 20 + "and more " * 20, 0),
        ("打开门", 1),
    ],
)
def test_text(action: str, usable: float) -> None:
    assert is_usable(action) == bool(usable)


@given(st.text(max_size=200))
def test_any_text_is_usable_or_not(action: str) -> None:
    assert is_usable(action) in (False, True)
