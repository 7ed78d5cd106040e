"""Options are settings under other names: no other process may notice."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from ray import cloudpickle

from labeling.samplers.uniform import UniformSampler
from lake.settings import Settings
from worldlake.commands import train
from worldlake.options import LakeStorage, ModelOptions, SamplingOptions, WorldModelOptions


@pytest.mark.parametrize("module", [pickle, cloudpickle])
@pytest.mark.parametrize(
    "options",
    [
        ModelOptions(name="hf:some/model"),
        SamplingOptions(sampler=UniformSampler()),
        WorldModelOptions(),
        LakeStorage(region="eu-west-1"),
        # Which fields were set decides whether the others fit together.
        train.DynamicsOptions(method="full", steps=1),
    ],
    ids=lambda options: type(options).__name__,
)
def test_options_arrive_as_the_settings_that_they_rename(options: Settings, module: Any) -> None:
    found = module.loads(module.dumps(options))
    assert type(found).__module__ not in ("worldlake.options", "worldlake.commands.train")
    assert (found.model_dump(), found.model_fields_set) == (options.model_dump(), options.model_fields_set)
    assert isinstance(options, type(found))
