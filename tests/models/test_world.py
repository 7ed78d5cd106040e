from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lake.errors import ModelRefused
from models.folders import TRAINED_AS
from models.objective import change_weights, image_token_loss
from models.protocols import Images
from models.settings import TokenSampling, WorldSettings
from models.world.tokens import TokenWorld, filtered
from models.world_loading import asked_size, load_image_tokenizer, load_world, tokenizer_id
from sample_world.pairs import clip_pairs
from training.builtin.data import shrunk
from training.builtin.world import new_model, new_tokenizer, write_folder

ACTIONS = ["the red shape moves left", "it gets darker", "nothing happens", "the white shape becomes blue"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    model = new_model(tokenizer)
    # Features of an untrained encoder are all alike; spread codes among them, so that images have different tokens.
    model.model.vqmodel.quantize.embedding.weight.data.normal_(std=0.5)
    path = tmp_path_factory.mktemp("world")
    write_folder(model, path)
    return path


@pytest.fixture(scope="module")
def world(folder: Path) -> TokenWorld:
    return load_world(WorldSettings(name=f"hf:{folder}"), "cpu")


@pytest.fixture(scope="module")
def images() -> tuple[Images, Images]:
    pairs = shrunk(clip_pairs(77), 32)
    return pairs.frames[pairs.index[:4, 0]], pairs.frames[pairs.index[:4, 1]]


def test_codes_and_pictures_are_those_of_the_stock_model(world: TokenWorld, images: tuple[Images, Images]) -> None:
    obs, _ = images
    codes, features = world.images.encode(obs)
    assert features.shape == (4, 64, 16)
    pixels = world.images.pixels(obs)
    stock = world.model.model.get_image_tokens(pixels, torch.tensor([[32, 32]] * 4)).view(4, 72)
    assert torch.equal(world._rows(codes), stock)
    ends = torch.zeros(4, 3, dtype=torch.long)
    decoded = world.model.model.decode_image_tokens(image_tokens=torch.cat([stock, ends], 1), height=8, width=8)
    expected = ((decoded * 0.5 + 0.5) * 255).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(world.images.decode(codes), expected)


def test_next_obs_keeps_codes_of_obs_where_features_are_nearer_than_hold(
    folder: Path, world: TokenWorld, images: tuple[Images, Images]
) -> None:
    codes, next_codes, distances = world.images.encode_pairs(*images)
    (alone, z_obs), (next_alone, z_next) = (world.images.encode(frames) for frames in images)
    assert np.array_equal(codes, alone)
    assert np.array_equal(next_codes, next_alone)
    assert distances == pytest.approx(np.square(z_obs - z_next).sum(-1), rel=1e-4)
    hold = float(np.median(distances[codes != next_codes]))
    write_folder(world.model, folder.parent / "holds", hold)
    holds = load_world(WorldSettings(name=f"hf:{folder.parent / 'holds'}"), "cpu")
    held, next_held, _ = holds.images.encode_pairs(*images)
    kept = distances < hold
    assert np.array_equal(held, codes)
    assert np.array_equal(next_held[kept], codes[kept])
    assert np.array_equal(next_held[~kept], next_codes[~kept])
    assert 0 < (next_held != codes).sum() < (next_codes != codes).sum()
    # It decides the codes of pairs, so that those made with another one are not taken for its own.
    assert tokenizer_id(holds.images) != tokenizer_id(world.images)


def test_a_batch_of_one_scores_as_a_batch_of_four(world: TokenWorld, images: tuple[Images, Images]) -> None:
    obs, after = images
    together = world.score(obs, ACTIONS, after)
    alone = [world.score(obs[i : i + 1], ACTIONS[i : i + 1], after[i : i + 1])[0] for i in range(4)]
    # The texts differ in length: the padding of the shorter ones changes nothing.
    assert together == pytest.approx(alone, abs=1e-5)


def test_the_unweighted_loss_is_that_of_the_stock_forward(world: TokenWorld, images: tuple[Images, Images]) -> None:
    codes, next_codes = (world.images.encode(frames)[0] for frames in images)
    inputs, labels = world.sequences(codes, ACTIONS, next_codes)
    stock = world.model(**inputs, labels=labels)
    ours = image_token_loss(stock.logits[:, :-1], labels[:, 1:])
    assert ours.item() == pytest.approx(stock.loss.item(), rel=1e-5)
    assert (labels != -100).sum(1).tolist() == [64] * 4
    kept = world.model(**inputs, logits_to_keep=world.next_tokens + 1).logits[:, :-1]
    weights = torch.ones(4, 64)
    assert image_token_loss(kept, labels[:, -world.next_tokens :], weights).item() == pytest.approx(
        ours.item(), rel=1e-5
    )


def test_what_is_drawn_greedily_is_what_a_full_forward_finds_likeliest(
    folder: Path, images: tuple[Images, Images]
) -> None:
    world = load_world(WorldSettings(name=f"hf:{folder}", sampling=TokenSampling(temperature=0)), "cpu")
    codes = world.images.encode(images[0])[0]
    drawn = world._draw(codes, ACTIONS, 2, range(4))
    assert np.array_equal(drawn[0::2], drawn[1::2])
    inputs, labels = world.sequences(codes, ACTIONS, drawn[0::2])
    logits = world.model(**inputs, logits_to_keep=world.next_tokens + 1).logits[:, :-1]
    likeliest = world._over_codes(logits[:, labels[0, -world.next_tokens :] != -100]).argmax(-1)
    assert np.array_equal(likeliest.numpy(), drawn[0::2])


def test_a_seed_gives_the_same_candidates_and_another_seed_others(
    world: TokenWorld, images: tuple[Images, Images]
) -> None:
    obs, _ = images
    first = world.sample(obs, ACTIONS, 3, seed=5)
    assert first.shape == (4, 3, 32, 32, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, world.sample(obs, ACTIONS, 3, seed=5))
    assert not np.array_equal(first, world.sample(obs, ACTIONS, 3, seed=6))
    assert not np.array_equal(first[:, 0], first[:, 1])
    with pytest.raises(ValueError, match="3 actions and 4 seeds for 4"):
        world.sample(obs, ACTIONS[:3], 1)


def test_what_is_drawn_for_an_obs_depends_on_its_seed_alone(
    folder: Path, world: TokenWorld, images: tuple[Images, Images]
) -> None:
    obs, _ = images
    together = world.sample(obs, ACTIONS, 2, seed=[7, 8, 9, 7])
    one_by_one = load_world(WorldSettings(name=f"hf:{folder}", batch_size=1), "cpu")
    assert np.array_equal(one_by_one.sample(obs[::-1].copy(), ACTIONS[::-1], 2, seed=[7, 9, 8, 7])[::-1], together)
    assert np.array_equal(world.sample(obs[2:3], ACTIONS[2:3], 2, seed=[9])[0], together[2])


def test_codes_are_drawn_as_often_as_they_are_likely(world: TokenWorld) -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2])
    luck = (torch.arange(1000) + 0.5) / 1000
    drawn = world._pick(probabilities.log().expand(1000, 4), luck)
    assert drawn.bincount(minlength=4).tolist() == [500, 0, 300, 200]


@given(
    arrays(np.float32, (3, 12), elements=st.floats(-8, 8, width=32)),
    st.floats(0.1, 5),
    st.none() | st.integers(1, 20),
    st.floats(0.05, 1),
)
def test_filtered_is_a_distribution_over_the_likeliest(
    logits: np.ndarray, temperature: float, top_k: int | None, top_p: float
) -> None:
    plain = torch.from_numpy(logits).log_softmax(-1)
    kept = filtered(plain, TokenSampling(temperature=temperature, top_k=top_k, top_p=top_p))
    assert torch.allclose(kept.exp().sum(-1), torch.ones(3), atol=1e-4)
    for row, before in zip(kept, plain, strict=True):
        alive = row > -torch.inf
        assert before[alive].min() >= before[~alive].max() - 1e-5 if (~alive).any() else True
        if top_k is not None and len(before.unique()) == 12:
            assert alive.sum() <= top_k


@given(arrays(np.float32, (4, 9), elements=st.floats(0, 1000, width=32)), st.floats(0, 1))
def test_change_weights_have_mean_one_and_a_floor(distances: np.ndarray, floor: float) -> None:
    weights = change_weights(torch.from_numpy(distances), floor)
    assert torch.allclose(weights.mean(-1), torch.ones(4), atol=1e-3)
    assert (weights >= floor - 1e-6).all()


def test_weights_are_the_squared_distances_over_their_mean() -> None:
    weights = change_weights(torch.tensor([[0.0, 1.0, 3.0], [0.0, 0.0, 0.0]]), 0.0)
    assert torch.allclose(weights, torch.tensor([[0.0, 0.75, 2.25], [1.0, 1.0, 1.0]]))


def test_a_tokenizer_is_known_by_its_weights_and_image_size(
    folder: Path, world: TokenWorld, images: tuple[Images, Images]
) -> None:
    half = load_world(WorldSettings(name=f"hf:{folder}", dtype="bfloat16"), "cpu")
    alone = load_image_tokenizer(folder, None, "cpu")
    assert tokenizer_id(half.images) == tokenizer_id(alone) == tokenizer_id(world.images)
    assert np.array_equal(alone.encode(images[0])[0], world.images.encode(images[0])[0])
    changed = load_world(WorldSettings(name=f"hf:{folder}"), "cpu")
    changed.model.model.vqmodel.quantize.embedding.weight[0] += 1
    assert tokenizer_id(changed.images) != tokenizer_id(world.images)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "hf:/nowhere/at/all"}, "no folder"),
        ({"name": "gpt"}, "unknown model"),
        ({"image_size": 30}, "not a multiple of 4"),
        ({"image_size": 64}, "cannot write 16"),
    ],
)
def test_what_is_no_world_model_is_refused(folder: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ModelRefused, match=message):
        load_world(WorldSettings.model_validate({"name": f"hf:{folder}", **settings}), "cpu")


def test_a_dynamics_model_is_no_world_model() -> None:
    from models.folders import BUILTIN

    with pytest.raises(ModelRefused, match="qwen2_vl"):
        load_world(WorldSettings(name=f"hf:{BUILTIN}"), "cpu")


def test_a_trained_world_model_takes_images_of_the_size_it_was_trained_with(folder: Path, tmp_path: Path) -> None:
    copy, adapter = Path(shutil.copytree(folder, tmp_path / "copy")), tmp_path
    own = load_image_tokenizer(folder, None, "cpu").image_size
    (copy / TRAINED_AS).write_text(json.dumps({"image_size": own // 2}))
    settings = WorldSettings(name=f"hf:{copy}")
    assert load_image_tokenizer(copy, asked_size(settings, copy), "cpu").image_size == own // 2
    assert asked_size(settings.model_copy(update={"image_size": own}), copy) == own
    (adapter / TRAINED_AS).write_text(json.dumps({"image_size": own}))
    assert asked_size(settings.model_copy(update={"adapter": str(adapter)}), copy) == own
