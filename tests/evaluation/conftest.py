"""Models and a run that several tests read."""

from __future__ import annotations

import pytest

from evaluation.helpers import LARGER, SIDES, request_of, small
from scalekv.evaluation import RunFolder, evaluate
from scalekv.pipelines import InfinityPipeline, VARPipeline, tiny_var_pipeline


@pytest.fixture(scope="session")
def pipeline() -> InfinityPipeline:
    """64 x 64 pixels."""
    return small(SIDES)


@pytest.fixture(scope="session")
def larger() -> InfinityPipeline:
    """128 x 128 pixels, which the detector of the built-in world reads."""
    return small(LARGER)


@pytest.fixture(scope="session")
def var() -> VARPipeline:
    made = tiny_var_pipeline(sides=(1, 2, 3, 4), num_classes=20)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="session")
def whole(pipeline: InfinityPipeline, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that nothing disturbed."""
    return evaluate(pipeline, request_of(), tmp_path_factory.mktemp("whole") / "run")
