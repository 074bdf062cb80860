"""Which schedule an image size gets, and the sampling defaults of a checkpoint: the scheduler of a saved pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from scalekv.errors import ScheduleError
from scalekv.models.infinity import schedules
from scalekv.planning import Schedule


@dataclass(frozen=True)
class ResolvedSize:
    """What will be drawn for a requested size.

    Args:
        schedule: the segments.
        extent: (rows, columns) that rotary positions are measured on.
        height: image height in pixels.
        width: image width in pixels.
        size: name of the pixel budget, None with an explicit schedule.
        template: aspect template (height / width, three decimals), None with an explicit schedule.
        exact: whether this is just what was asked for.
    """

    schedule: Schedule
    extent: tuple[int, int]
    height: int
    width: int
    size: str | None
    template: str | None
    exact: bool


class InfinityScheduler(SchedulerMixin, ConfigMixin):
    """Holds a checkpoint's schedule table and sampling defaults; has no weights and no state.

    Args:
        schedule: ``"infinity"`` for the published templates, or one explicit list of [height, width] in tokens.
        size: default pixel budget: ``"0.06M"``, ``"0.25M"``, ``"0.60M"`` or ``"1M"``; unused with an explicit schedule.
        guidance_scale: default guidance, 1 for none.
        temperature: default softmax temperature.
        top_k: default `filter_logits` argument.
        top_p: default `filter_logits` argument.
        cfg_insertion_layer: where guidance is mixed in, see `guidance_layers`.
        pixels_per_token: image pixels per token and side.
        extent: [rows, columns] that rotary positions are measured on with an explicit schedule; default its last
            segment.

    Raises:
        ScheduleError: an unknown size name or a list that is no schedule.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        schedule: str | Sequence[Sequence[int]] = "infinity",
        size: str = "1M",
        guidance_scale: float = 3.0,
        temperature: float = 1.0,
        top_k: int = 900,
        top_p: float = 0.97,
        cfg_insertion_layer: Sequence[int] = (0,),
        pixels_per_token: int = 16,
        extent: Sequence[int] | None = None,
    ) -> None:
        if isinstance(schedule, str):
            if schedule != "infinity":
                raise ScheduleError(f"Unknown schedule table {schedule!r}; use 'infinity' or [height, width] pairs.")
            schedules.check_size(size)
        else:
            Schedule.from_shapes(schedule)

    def resolve(
        self,
        size: str | None = None,
        height: int | None = None,
        width: int | None = None,
        aspect: float | None = None,
    ) -> ResolvedSize:
        """Find the schedule for an image.

        Args:
            size: name of the pixel budget; default: the nearest to ``height x width``, or the checkpoint's own.
            height: wanted image height in pixels, together with ``width``.
            width: wanted image width in pixels.
            aspect: wanted height / width instead of both; default 1.

        Returns:
            The nearest there is; ``exact`` tells whether it is what was asked for.

        Raises:
            ScheduleError: one side without the other, sides and an aspect, a value not above 0, or an unknown size.
        """
        if (height is None) != (width is None):
            raise ScheduleError("Give height and width together, or an aspect.")
        if height is not None and aspect is not None:
            raise ScheduleError("Give either height and width or an aspect, not both.")
        if min(1 if value is None else value for value in (height, width, aspect)) <= 0:
            raise ScheduleError(f"height {height}, width {width} and aspect {aspect} must be more than 0.")
        if height is not None and width is not None:
            aspect = height / width
        if not isinstance(self.config.schedule, str):
            return self._explicit(size, height, width, aspect)
        return self._nearest(size, height, width, 1.0 if aspect is None else aspect)

    def _nearest(self, size: str | None, height: int | None, width: int | None, aspect: float) -> ResolvedSize:
        pixels = self.config.pixels_per_token
        sides_decide = (height, width) if size is None else (None, None)
        template, name = schedules.nearest(size or self.config.size, *sides_decide, aspect, pixels)
        schedule = schedules.schedule_for(template, name)
        sides = (schedule[-1].height * pixels, schedule[-1].width * pixels)
        exact = (height, width) == sides if height is not None else abs(aspect - float(template)) < 1e-3
        return ResolvedSize(schedule, schedules.extent(template), *sides, name, template, exact)

    def _explicit(self, size: str | None, height: int | None, width: int | None, aspect: float | None) -> ResolvedSize:
        if size is not None:
            raise ScheduleError(f"This model draws one explicit schedule and has no size {size!r}; leave size out.")
        schedule = Schedule.from_shapes(self.config.schedule)
        last, pixels = schedule[-1], self.config.pixels_per_token
        rows, columns = self.config.extent or (last.height, last.width)
        sides = (last.height * pixels, last.width * pixels)
        exact = aspect is None or abs(aspect - sides[0] / sides[1]) < 1e-3
        if height is not None:
            exact = (height, width) == sides
        return ResolvedSize(schedule, (int(rows), int(columns)), *sides, None, None, exact)


# Saved pipelines store the module of a component's class; the package is the address we promise to keep.
InfinityScheduler.__module__ = "scalekv.models.infinity"
