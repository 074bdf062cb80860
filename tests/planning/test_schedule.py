import pytest
from hypothesis import given

from scalekv.errors import ScheduleError
from scalekv.planning import Schedule, Segment
from strategies import schedules


@given(schedules())
def test_starts_are_running_sums(schedule):
    total = 0
    for segment in schedule:
        assert schedule.start(segment.index) == total
        total += segment.tokens
    assert schedule.total_tokens == total
    assert schedule.history_tokens == total - schedule[len(schedule) - 1].tokens


def test_infinity_schedule_at_1m():
    schedule = Schedule.from_sides([1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64])
    assert schedule.tokens == (1, 4, 16, 36, 64, 144, 256, 400, 576, 1024, 1600, 2304, 4096)
    assert schedule.history_tokens == 6425
    assert schedule.total_tokens == 10521


def test_video_segments_count_frames():
    schedule = Schedule.from_shapes([(1, 1, 1), (3, 2, 2)])
    assert schedule.tokens == (1, 12)
    assert schedule.key == "1x1-3x2x2"


@pytest.mark.parametrize("shapes", [[], [(0, 1)], [(1, -2)], [(1,)], [(1, 2, 3, 4)], [(1.5, 2)]])
def test_nonsense_shapes_are_refused(shapes):
    with pytest.raises(ScheduleError):
        Schedule.from_shapes(shapes)


def test_segments_must_be_in_order():
    with pytest.raises(ScheduleError, match="carries index 1"):
        Schedule((Segment(1, 1, 1),))
