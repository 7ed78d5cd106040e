"""Models that several tests of this folder load."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.tiny import save_tiny


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("qwen2_vl", tmp_path_factory.mktemp("qwen"))
