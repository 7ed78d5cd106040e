from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.world import changed_pixels, figures, psnr, questions
from models.settings import TokenSampling, WorldSettings
from models.world_loading import load_world


def test_psnr_is_of_all_pixels_of_a_kind() -> None:
    truth = np.zeros((2, 4, 4, 3), np.uint8)
    images = truth.copy()
    images[0, 0, 0] = 51
    where = np.zeros((2, 4, 4), bool)
    where[0, 0, :2] = True
    assert psnr(images, truth, where) == pytest.approx(-10 * np.log10(0.2**2 / 2), abs=0.01)
    changed = changed_pixels(truth, images)
    assert changed.sum() == 4
    assert changed[0, :2, :2].all()


@pytest.mark.slow
def test_the_builtin_world_model_shows_what_it_is_asked_for() -> None:
    torch.set_num_threads(1)
    world = load_world(WorldSettings(sampling=TokenSampling(temperature=0.7)), "cpu")
    found = figures(world, *questions(range(210_000, 210_004)), n=2)
    shares = {name: found[name]["shows the action, says the oracle"]["share"] for name in list(found)[:3]}  # type: ignore[index]
    assert shares["tokenizer's ceiling"] > 0.9
    # Chance is under a tenth: there are some twenty things that can happen to a scene.
    assert shares["best of 2"] > 0.3
    assert found["best of 2"]["PSNR changed"] > found["obs itself"]["PSNR changed"]  # type: ignore[index]
