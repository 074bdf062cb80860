"""One tiny pipeline for the tests that leave it as it is."""

from __future__ import annotations

import pytest

from pipelines.helpers import quiet_pipeline
from scalekv.pipelines import InfinityPipeline


@pytest.fixture(scope="session")
def pipeline() -> InfinityPipeline:
    return quiet_pipeline()
