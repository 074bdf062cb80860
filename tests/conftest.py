"""Settings every test shares: one torch thread per worker, no network, deterministic hypothesis runs in CI."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent))

settings.register_profile(
    "scalekv", deadline=None, derandomize=bool(os.environ.get("CI")), suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("scalekv")


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def published() -> dict:
    """The published drafter layers and capacities of Infinity-2B and 8B."""
    return json.loads((Path(__file__).parent / "data" / "scalekv_published.json").read_text())
