"""Samplers: which frames of a clip become frame pairs. To add one, write one file and enter it in `Sampler`.

docs/extending.md has the recipe.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from labeling.samplers.motion import MotionSampler
from labeling.samplers.uniform import UniformSampler

Sampler = Annotated[MotionSampler | UniformSampler, Field(discriminator="method")]
"""Any sampler; `method` selects the class."""
