"""The labeling stage: every pair gets its own label, and a bad one takes no neighbor with it."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch

from labeling.annotate import Annotate
from labeling.images import decode_images
from labeling.stream import SAMPLES, block
from models.huggingface import HuggingFaceDynamics
from models.protocols import Images
from models.settings import ModelSettings
from tests.models.tiny import save_tiny

SIZE = 64
LABELS = ("action", "confidence", "direction", "copy", "text")


@pytest.fixture(scope="module")
def annotate(tmp_path_factory: pytest.TempPathFactory) -> Annotate:
    folder = save_tiny("qwen2_vl", tmp_path_factory.mktemp("model"))
    return Annotate(ModelSettings(name=f"hf:{folder}", image_size=SIZE, batch_size=4))


def jpeg(rng: np.random.Generator) -> bytes:
    image = cv2.resize(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), (SIZE, SIZE))
    return cv2.imencode(".jpg", image)[1].tobytes()


def pair(number: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    return {"video_id": "v", "triple_id": f"pair-{number}", "obs": jpeg(rng), "next_obs": jpeg(rng)}


def labels(rows: list[dict[str, Any]]) -> dict[str, tuple[Any, ...]]:
    return {row["triple_id"]: tuple(row[name] for name in LABELS) for row in rows}


def test_a_label_belongs_to_its_own_pair_whatever_the_batch(annotate: Annotate) -> None:
    pairs = [pair(number) for number in range(10)]
    together = labels(annotate(block(pairs, SAMPLES)).to_pylist())
    assert len({label[0] for label in together.values()}) > 1
    for rows in (pairs[::-1], pairs[3:5], [{"video_id": "end", "sampled": 3}, *pairs[5:]]):
        for id_, label in labels(annotate(block(rows, SAMPLES)).to_pylist()).items():
            if id_ is not None:
                assert label[0] == together[id_][0]
                assert label[1:] == pytest.approx(together[id_][1:], abs=1e-4)


@torch.no_grad()
def log_probability(model: HuggingFaceDynamics, obs: bytes, next_obs: bytes, action: str) -> float:
    """Mean per token and its end, by one plain forward for each token: no batch, no cache, no padding."""
    prompt = model._inputs(decode_images([obs]), decode_images([next_obs]), torch.device("cpu"))
    tokenizer, network = model._inputs.tokenizer, model.model
    ends = np.atleast_1d(network.generation_config.eos_token_id).tolist()
    written = tokenizer(model._inputs.lead + action, add_special_tokens=False)["input_ids"]
    special = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    texts = [id_ for id_ in range(len(tokenizer)) if id_ not in special or id_ == tokenizer.unk_token_id]
    shape, found = prompt["input_ids"].shape, []
    for count, token in enumerate([*written, None]):
        before = torch.tensor([written[:count]], dtype=torch.long)
        inputs = {
            name: torch.cat([value, before if name == "input_ids" else torch.zeros_like(before).to(value.dtype)], -1)
            if value.shape == shape
            else value
            for name, value in prompt.items()
            if name != "attention_mask"
        }
        odds = network(**inputs, use_cache=False).logits[0, -1].double().exp()
        end = odds[ends].sum()
        everything = odds[[id_ for id_ in texts if id_ not in ends]].sum() + end
        found.append(float(((end if token is None else odds[token]) / everything).log()))
    return float(np.mean(found))


def test_scores_are_of_the_pair_against_its_reverse_and_against_no_change(annotate: Annotate) -> None:
    model = annotate._label._model
    assert isinstance(model, HuggingFaceDynamics)
    pairs = [pair(number) for number in range(3)]
    for given, row in zip(pairs, annotate(block(pairs, SAMPLES)).to_pylist(), strict=True):
        obs, next_obs, action = given["obs"], given["next_obs"], row["action"]
        own = log_probability(model, obs, next_obs, action)
        direction = own - log_probability(model, next_obs, obs, action)
        copy = own - log_probability(model, obs, obs, action)
        # Far enough apart that neither score can be taken for the other, nor for its negative.
        assert min(abs(direction - copy), abs(direction + copy), abs(direction), abs(copy)) > 1e-4
        assert (row["confidence"], row["direction"], row["copy"]) == pytest.approx((own, direction, copy), abs=1e-5)


def test_scores_of_a_pair_of_equal_frames_are_zero(annotate: Annotate) -> None:
    given = pair(1)
    (still,) = annotate(block([{**given, "next_obs": given["obs"]}], SAMPLES)).to_pylist()
    assert still["direction"] == pytest.approx(0, abs=1e-5)
    assert still["copy"] == pytest.approx(0, abs=1e-5)


def test_a_bad_pair_takes_no_neighbor_with_it(annotate: Annotate) -> None:
    pairs = [pair(number) for number in range(5)]
    alone = labels(annotate(block(pairs, SAMPLES)).to_pylist())
    pairs[2]["next_obs"] = b"no image"
    rows = annotate(block(pairs, SAMPLES)).to_pylist()
    assert [row["error_type"] for row in rows] == [None, None, "ValueError", None, None]
    assert (rows[2]["scope"], rows[2]["stage"], rows[2]["action"]) == ("pair", "annotate", None)
    for row in (*rows[:2], *rows[3:]):
        assert row["action"] == alone[row["triple_id"]][0]


def test_a_model_at_fault_is_not_a_thousand_bad_pairs(annotate: Annotate, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(annotate._label._model, "annotate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        annotate(block([pair(number) for number in range(3)], SAMPLES))


def test_a_block_of_bad_pairs_alone_is_not_the_fault_of_the_model(
    annotate: Annotate, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [{**pair(number), "obs": b"no image"} for number in range(3)]
    assert [row["error_type"] for row in annotate(block(broken, SAMPLES)).to_pylist()] == ["ValueError"] * 3
    answer = annotate._label._model.annotate

    def only_black(obs: Images, next_obs: Images) -> Any:
        if obs.any():
            raise IndexError("this pair is poison")
        return answer(obs, next_obs)

    monkeypatch.setattr(annotate._label._model, "annotate", only_black)
    rows = annotate(block([pair(number) for number in range(3)], SAMPLES)).to_pylist()
    assert [row["error_type"] for row in rows] == ["IndexError"] * 3


def test_rows_without_a_pair_pass_through(annotate: Annotate) -> None:
    given = [{"video_id": "v", "scope": "span", "error_type": "E"}, {"video_id": "w", "sampled": 0}]
    rows = annotate(block(given, SAMPLES)).to_pylist()
    assert [row["video_id"] for row in rows] == ["v", "w"]
    assert all(row["action"] is None for row in rows)


@pytest.mark.parametrize("method", ["annotate", "score"])
def test_a_model_that_answers_for_too_few_labels_none_of_them(
    annotate: Annotate, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    answer = getattr(annotate._label._model, method)
    monkeypatch.setattr(annotate._label._model, method, lambda *given: answer(*given)[:-1])
    rows = annotate(block([pair(number) for number in range(3)], SAMPLES)).to_pylist()
    assert [(row["error_type"], row["action"]) for row in rows] == [("ValueError", None)] * 3


def test_the_message_of_a_failure_is_one_line_of_bounded_length(
    annotate: Annotate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(obs: Images, next_obs: Images) -> None:
        if obs.any():
            raise ValueError("first\n" + "x" * 600)

    monkeypatch.setattr(annotate._label._model, "annotate", fail)
    (row,) = annotate(block([pair(1)], SAMPLES)).to_pylist()
    assert row["message"] == "first " + "x" * 494
