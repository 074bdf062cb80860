"""The schedule and the sampling defaults of a checkpoint: the scheduler of a saved pipeline."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from scalekv.models.var.schedules import PIXELS_PER_TOKEN, SIDES_256
from scalekv.planning import Schedule


class VARScheduler(SchedulerMixin, ConfigMixin):
    """Holds a checkpoint's only schedule and its sampling defaults; has no weights and no state.

    Args:
        schedule: list of [height, width] in tokens, square; default that of the 256-pixel models.
        guidance_scale: default guidance [cfg], see `guidance_ramp`; 0 for none.
        top_k: default `filter_logits` argument.
        top_p: default `filter_logits` argument.
        pixels_per_token: image pixels per token and side.

    Raises:
        ScheduleError: a list that is no schedule.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        schedule: Sequence[Sequence[int]] = tuple((side, side) for side in SIDES_256),
        guidance_scale: float = 1.5,
        top_k: int = 900,
        top_p: float = 0.96,
        pixels_per_token: int = PIXELS_PER_TOKEN,
    ) -> None:
        Schedule.from_shapes(schedule)

    @property
    def segments(self) -> Schedule:
        """The schedule."""
        return Schedule.from_shapes(self.config.schedule)


# Saved pipelines store the module of a component's class; the package is the address we promise to keep.
VARScheduler.__module__ = "scalekv.models.var"
