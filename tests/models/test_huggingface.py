"""Tiny random models of each family, saved and loaded as a user's would be."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from models.huggingface import Cache, HuggingFaceDynamics
from models.loading import load_dynamics
from models.protocols import Images
from models.settings import ModelSettings
from tests.models.tiny import FAMILIES, QWEN, WORDS, save_tiny

TOLERANCE = 1e-5


class Reads(TorchDispatchMode):
    """Counts the values that are read from tensors into Python, each of which makes the host wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


Load = Callable[..., HuggingFaceDynamics]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    @cache
    def folder(family: str) -> Path:
        return save_tiny(family, tmp_path_factory.mktemp(family))

    @cache
    def loaded(family: str, **changes: object) -> HuggingFaceDynamics:
        values = {"name": f"hf:{folder(family)}", "batch_size": 16, "max_new_tokens": 8} | changes
        model = load_dynamics(ModelSettings.model_validate(values), "cpu")
        assert isinstance(model, HuggingFaceDynamics)
        return model

    return loaded


def pairs(model: HuggingFaceDynamics, count: int, seed: int = 1) -> tuple[Images, Images]:
    size = model.image_size
    obs, next_obs = np.random.default_rng(seed).integers(0, 256, (2, count, size, size, 3), dtype=np.uint8)
    return obs, next_obs


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_one_answers_as_a_batch_of_sixteen(load: Load, family: str) -> None:
    model = load(family)
    obs, next_obs = pairs(model, 16)
    together = model.annotate(obs, next_obs)
    assert len({annotation.action for annotation in together}) > 1
    for batch_size in (1, 5):
        apart = load(family, batch_size=batch_size).annotate(obs, next_obs)
        assert [a.action for a in apart] == [a.action for a in together]
        np.testing.assert_allclose([a.mean_logprob for a in apart], [a.mean_logprob for a in together], atol=TOLERANCE)
    actions = [annotation.action for annotation in together]
    one_by_one = [model.score(obs[i : i + 1], next_obs[i : i + 1], actions[i : i + 1])[0] for i in range(16)]
    np.testing.assert_allclose(one_by_one, model.score(obs, next_obs, actions), atol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_new_tokens", [2, 8])
def test_generated_logprob_is_the_scored_one(load: Load, family: str, max_new_tokens: int) -> None:
    model = load(family, max_new_tokens=max_new_tokens)
    obs, next_obs = pairs(model, 16)
    annotations = model.annotate(obs, next_obs)
    scores = model.score(obs, next_obs, [annotation.action for annotation in annotations])
    assert scores.dtype == np.float32
    np.testing.assert_allclose([a.mean_logprob for a in annotations], scores, atol=TOLERANCE)
    assert all(a.tokens == len(a.action.split()) + 1 <= max_new_tokens for a in annotations)


@pytest.mark.parametrize("family", QWEN)
def test_greedy_tokens_are_those_of_generate(tmp_path: Path, family: str) -> None:
    folder = save_tiny(family, tmp_path, ends=("<eos>",))
    model = load_dynamics(ModelSettings(name=f"hf:{folder}", max_new_tokens=8), "cpu")
    assert isinstance(model, HuggingFaceDynamics)
    obs, next_obs = pairs(model, 16)
    (_, inputs), *_ = model._batches(obs, next_obs)
    silent = sorted(model._silent_ids - set(model._ends.tolist()))
    tokens = model.model.generate(**inputs, do_sample=False, max_new_tokens=7, suppress_tokens=silent)
    texts = model._inputs.tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :])
    assert [a.action for a in model.annotate(obs, next_obs)] == [text.split("<eos>")[0].strip() for text in texts]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_pads_a_batch_changes_nothing(load: Load, family: str) -> None:
    model = load(family)
    obs, next_obs = pairs(model, 3)
    actions = ["", "the door opens", " ".join(WORDS)]
    together = model.score(obs, next_obs, actions)
    for i in range(3):
        alone = model.score(obs[i : i + 1], next_obs[i : i + 1], actions[i : i + 1])
        np.testing.assert_allclose(alone, together[i], atol=TOLERANCE)
    assert model.annotate(obs[:0], next_obs[:0]) == []
    assert model.score(obs[:0], next_obs[:0], []).shape == (0,)


@pytest.mark.parametrize("layout", ["images", "video"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_really_gets_both_images_in_order(load: Load, family: str, layout: str) -> None:
    if layout == "video" and family not in QWEN:
        pytest.skip("takes no video of two frames")
    model = load(family, pair_layout=layout)
    (obs, other), next_obs = pairs(model, 2, seed=3), pairs(model, 2, seed=4)[0]
    base, other_obs, other_next, swapped, same = model.score(
        np.stack([obs[0], other[0], obs[0], next_obs[0], obs[0]]),
        np.stack([next_obs[0], next_obs[0], other[0], obs[0], obs[0]]),
        ["the hand moves left"] * 5,
    )
    assert len({round(float(x), 5) for x in (base, other_obs, other_next, swapped, same)}) == 5


@pytest.mark.parametrize("family", ["qwen2_vl", "idefics3"])
@given(order=st.permutations(range(7)))
@settings(max_examples=10, deadline=None)
def test_a_label_belongs_to_its_own_pair(load: Load, family: str, order: list[int]) -> None:
    model = load(family, batch_size=4)
    obs, next_obs = pairs(model, 7)
    straight = [a.action for a in model.annotate(obs, next_obs)]
    assert [a.action for a in model.annotate(obs[order], next_obs[order])] == [straight[i] for i in order]


@pytest.mark.parametrize("family", QWEN)
def test_a_pair_as_video_halves_the_visual_tokens(load: Load, family: str) -> None:
    def visual_tokens(layout: str) -> int:
        model = load(family, pair_layout=layout)
        (_, inputs), *_ = model._batches(*pairs(model, 1))
        return int((inputs["mm_token_type_ids"][0] > 0).sum())

    assert visual_tokens("images") == 2 * visual_tokens("video") == 2 * visual_tokens("auto")


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_host_waits_for_the_device_once_a_token_at_most(load: Load, family: str, cache: Cache) -> None:
    def waits(max_new_tokens: int) -> int:
        loaded = load(family)
        sizes = {"image_size": loaded.image_size, "batch_size": 2, "max_new_tokens": max_new_tokens}
        model = HuggingFaceDynamics(loaded.model, loaded._inputs, cache=cache, **sizes)
        logprobs = model._logprobs
        model._logprobs = lambda logits: logprobs(logits.index_fill(-1, model._ends, -1e9))  # never ends by itself
        with Reads() as reads:
            model.annotate(*pairs(model, 2))
        return reads.count

    # On the CPU every token is followed by a look at whether all have ended; on a GPU every fourth.
    assert waits(8) - waits(4) == 4


def test_an_answer_follows_the_prompt_as_the_chat_template_has_it(tmp_path: Path) -> None:
    folder = save_tiny("qwen2_vl", tmp_path)
    template = (
        "{% for message in messages %}{% for part in message.content %}"
        "{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% endif %}{% endfor %}"
        "{{ message.role }}: {{ message.content[-1].text }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    model: Any = load_dynamics(ModelSettings(name=f"hf:{folder}"), "cpu")
    assert model._inputs.lead == " "
    (folder / "chat_template.jinja").unlink()
    plain: Any = load_dynamics(ModelSettings(name=f"hf:{folder}"), "cpu")
    assert plain._inputs.lead == ""
    assert len(plain.annotate(*pairs(plain, 2))) == 2


def test_special_tokens_in_an_action_are_left_out(load: Load) -> None:
    model = load("qwen2_vl")
    obs, next_obs = pairs(model, 1)
    scores = [model.score(obs, next_obs, [action])[0] for action in ("the hand <|video_pad|> moves", "the hand moves")]
    assert scores[0] == scores[1]


def test_images_of_another_shape_are_an_error(load: Load) -> None:
    model = load("qwen2_vl")
    obs, next_obs = pairs(model, 2)
    for wrong in (next_obs[:1], next_obs[:, :16], next_obs.astype(np.float32)):
        with pytest.raises(ValueError, match="not uint8"):
            model.annotate(obs, wrong)
    with pytest.raises(ValueError, match="1 actions for 2 pairs"):
        model.score(obs, next_obs, ["it moves"])


@settings(deadline=None)
@given(batch_size=st.integers(1, 200), share=st.floats(0, 1))
def test_few_pairs_are_few_rows_of_an_accelerator_and_shapes_are_few(load: Load, batch_size: int, share: float) -> None:
    loaded = load("qwen2_vl")
    sizes = {"image_size": loaded.image_size, "batch_size": batch_size, "max_new_tokens": 2}
    few = HuggingFaceDynamics(loaded.model, loaded._inputs, answers_few=True, **sizes)
    pairs = 1 + int(share * (batch_size - 1))
    assert pairs <= few._rows(pairs) <= min(2 * pairs, batch_size)
    assert len({few._rows(count) for count in range(1, batch_size + 1)}) <= batch_size.bit_length() + 1
    assert HuggingFaceDynamics(loaded.model, loaded._inputs, **sizes)._rows(pairs) == batch_size
