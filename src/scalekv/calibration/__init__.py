"""Calibration: measure what a model's attention looks at, once per model and schedule."""

from scalekv.calibration.calibrate import calibrate
from scalekv.calibration.recording import RecordingCache
from scalekv.calibration.statistics import AttentionStatistics

__all__ = ["AttentionStatistics", "RecordingCache", "calibrate"]
