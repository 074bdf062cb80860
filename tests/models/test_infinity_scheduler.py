"""Schedules, sizes and positions of Infinity, against the published tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scalekv.errors import InvalidInput, ScheduleError
from scalekv.models.infinity import InfinityScheduler, schedules
from scalekv.models.infinity.rope import rope_tables
from scalekv.planning import Schedule

EXPECTED = json.loads((Path(__file__).parent.parent / "data" / "infinity_schedules_expected.json").read_text())


def test_the_tables_need_no_torch() -> None:
    check = (
        "import sys; import scalekv.models.infinity.schedules as s; s.schedule_for('1.000', '1M');"
        "assert not {'torch', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


@pytest.mark.parametrize("template", list(EXPECTED["tokens_total"]))
def test_token_counts_and_pixels(template: str) -> None:
    for size, tokens in EXPECTED["tokens_total"][template].items():
        schedule = schedules.schedule_for(template, size)
        assert schedule.total_tokens == tokens
        assert [16 * schedule[-1].height, 16 * schedule[-1].width] == EXPECTED["pixel"][template][size]
        found = InfinityScheduler().resolve(size, aspect=float(template))
        assert (found.schedule, found.template, found.size, found.exact) == (schedule, template, size, True)
        assert [found.height, found.width] == EXPECTED["pixel"][template][size]
        by_pixels = InfinityScheduler().resolve(height=found.height, width=found.width)
        assert by_pixels == found


@pytest.mark.parametrize("template", list(EXPECTED["rope_mode2_index"]))
def test_rotary_positions_round_half_to_even(template: str) -> None:
    schedule = schedules.schedule_for(template, "1M")
    tables = rope_tables(schedule, 8, schedules.extent(template), mode=2)
    index = EXPECTED["rope_mode2_index"][template]
    columns = index["cols"]
    for segment, rows, across in zip(schedule, index["rows"], columns, strict=True):
        cos, sin = tables.at(segment)
        places = torch.cartesian_prod(torch.tensor(rows).float(), torch.tensor(across).float())
        # Channel 0 turns with the row and channel 2 with the column, both at frequency 1.
        torch.testing.assert_close(cos[:, [0, 2]], places.cos())
        torch.testing.assert_close(sin[:, [0, 2]], places.sin())


def test_nearest_template_takes_the_first_of_equals() -> None:
    assert schedules.nearest_template(1.0) == "1.000"
    assert schedules.nearest_template(0.667) == "0.666"
    assert schedules.nearest_template(1.125) == "1.000"
    assert schedules.nearest_template(9 / 16) == "0.571"
    assert schedules.nearest_template(100) == "3.000"


def test_other_sizes_resolve_to_the_nearest() -> None:
    found = InfinityScheduler().resolve(height=1000, width=1000)
    assert (found.height, found.width, found.size, found.exact) == (1024, 1024, "1M", False)
    assert InfinityScheduler().resolve(height=500, width=520).size == "0.25M"
    assert InfinityScheduler().resolve(height=700, width=760).size == "0.60M"
    kept = InfinityScheduler().resolve("0.06m", height=1024, width=512)
    assert (kept.template, kept.size, kept.exact) == ("2.000", "0.06M", False)
    assert InfinityScheduler(size="0.25M").resolve().height == 512
    assert not InfinityScheduler().resolve(aspect=0.55).exact
    assert InfinityScheduler().resolve("0.06M").extent == (64, 64)


def test_explicit_schedules() -> None:
    scheduler = InfinityScheduler(schedule=[[1, 1], [2, 3], [4, 6]])
    found = scheduler.resolve()
    assert found.schedule == Schedule.from_shapes([(1, 1), (2, 3), (4, 6)])
    assert (found.extent, found.height, found.width, found.size, found.exact) == ((4, 6), 64, 96, None, True)
    assert not scheduler.resolve(height=64, width=64).exact
    assert not scheduler.resolve(aspect=1.0).exact
    wide = InfinityScheduler(schedule=[[1, 1], [4, 6]], extent=[42, 63], pixels_per_token=8).resolve()
    assert (wide.extent, wide.height) == ((42, 63), 32)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: InfinityScheduler("other"),
        lambda: InfinityScheduler(size="2M"),
        lambda: InfinityScheduler([[1, 0]]),
        lambda: InfinityScheduler().resolve("2M"),
        lambda: InfinityScheduler().resolve(height=512),
        lambda: InfinityScheduler().resolve(height=512, width=512, aspect=1),
        lambda: InfinityScheduler().resolve(height=0, width=512),
        lambda: InfinityScheduler().resolve(aspect=-1.0),
        lambda: InfinityScheduler([[1, 1]]).resolve("1M"),
        lambda: schedules.schedule_for("1.1", "1M"),
    ],
)
def test_unusable_sizes_are_refused(wrong) -> None:
    with pytest.raises(ScheduleError):
        wrong()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((6, (4, 4), 2), "multiple of 4"), ((8, (4, 4), 3), "rotary mode"), ((8, (0, 4), 2), "extent")],
)
def test_unusable_positions_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        rope_tables(Schedule.from_sides([1, 2]), *arguments)
    with pytest.raises(InvalidInput, match="1 frame"):
        rope_tables(Schedule.from_shapes([(2, 4, 4)]), 8, (4, 4))
