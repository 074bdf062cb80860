"""Byte counts against the published memory figures; the tables are those computed from the papers' own formula."""

from __future__ import annotations

import pytest

from scalekv.errors import InvalidInput
from scalekv.planning import CONVENTIONS, CacheGeometry, Schedule

SCHEDULE = Schedule.from_sides([1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64])
SHAPES = {"2b": (32, 16, 128), "8b": (40, 28, 128)}
MIB = 2**20

FULL = {  # (model, convention): MiB for batch 1..8, guidance 2
    ("2b", "16bit"): [3212.5, 6425.0, 9637.5, 12850.0, 16062.5, 19275.0, 22487.5, 25700.0],
    ("2b", "32bit"): [6425.0, 12850.0, 19275.0, 25700.0, 32125.0, 38550.0, 44975.0, 51400.0],
    ("2b", "scalekv"): [4818.8, 9637.5, 14456.2, 19275.0, 24093.8, 28912.5, 33731.2, 38550.0],
    ("8b", "16bit"): [7027.3, 14054.7, 21082.0, 28109.4, 35136.7, 42164.1, 49191.4, 56218.8],
    ("8b", "32bit"): [14054.7, 28109.4, 42164.1, 56218.8, 70273.4, 84328.1, 98382.8, 112437.5],
    ("8b", "scalekv"): [10541.0, 21082.0, 31623.0, 42164.1, 52705.1, 63246.1, 73787.1, 84328.1],
    ("2b", "stock"): [7890.8, 15781.5, 23672.2, 31563.0, 39453.8, 47344.5, 55235.2, 63126.0],
    ("8b", "stock"): [17261.0, 34522.0, 51783.0, 69044.1, 86305.1, 103566.1, 120827.1, 138088.1],
}


def geometry(model: str, batch: int, **changes) -> CacheGeometry:
    return CacheGeometry(*SHAPES[model], schedule=SCHEDULE, batch=batch, **changes)


def printed(nbytes: int) -> str:
    return f"{nbytes / MIB:.1f}"


@pytest.mark.parametrize(("model", "convention"), FULL)
def test_full_cache_table(model, convention):
    ours = [printed(CONVENTIONS[convention].cache_bytes(geometry(model, batch))) for batch in range(1, 9)]
    assert ours == [f"{value:.1f}" for value in FULL[model, convention]]


@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize(("element_bytes", "name"), [(2, "16bit"), (4, "32bit")])
def test_lossless_bytes_are_the_exact_engine_rows(model, element_bytes, name):
    found = [geometry(model, batch, element_bytes=element_bytes).lossless_bytes for batch in range(1, 9)]
    assert [printed(value) for value in found] == [f"{value:.1f}" for value in FULL[model, name]]


@pytest.mark.parametrize("model", SHAPES)
def test_stock_bytes_are_float32_keys_and_16_bit_values_of_all_segments(model):
    found = [printed(geometry(model, batch).stock_bytes) for batch in range(1, 9)]
    assert found == [f"{value:.1f}" for value in FULL[model, "stock"]]


def test_stock_bytes_of_a_float32_run():
    assert printed(geometry("2b", 1, element_bytes=4).stock_bytes) == "10521.0"
    assert printed(geometry("8b", 8, element_bytes=4).stock_bytes) == "184117.5"


@pytest.mark.parametrize(
    ("model", "convention", "megabytes"),
    [
        ("2b", "16bit", 2600),
        ("2b", "scalekv", 3900),
        ("2b", "32bit", 5200),
        ("8b", "16bit", 5687.5),
        ("8b", "scalekv", 8531.25),
        ("8b", "32bit", 11375),
    ],
)
def test_compressed_table_at_650_tokens(model, convention, megabytes):
    assert CONVENTIONS[convention].cache_bytes(geometry(model, 8), tokens=650) / MIB == megabytes


@pytest.mark.parametrize(
    ("model", "batch", "tokens", "megabytes"),
    [
        ("2b", 8, None, "38550.0"),
        ("2b", 8, 1300, "7800.0"),
        ("2b", 8, 650, "3900.0"),
        ("2b", 8, 265, "1590.0"),
        ("8b", 8, None, "84328.1"),
        ("8b", 8, 1300, "17062.5"),
        ("8b", 8, 650, "8531.2"),
        ("8b", 8, 265, "3478.1"),
        ("8b", 1, None, "10541.0"),
        ("8b", 1, 650, "1066.4"),
        ("8b", 16, None, "168656.2"),
        ("8b", 16, 650, "17062.5"),
    ],
)
def test_cross_check_with_the_paper(model, batch, tokens, megabytes):
    assert printed(CONVENTIONS["scalekv"].cache_bytes(geometry(model, batch), tokens)) == megabytes


def test_hack_counts_the_last_segment():
    """The full-cache sizes that HACK and HACK++ print: 7.71 and 16.86 GiB at batch 1."""
    found = [CONVENTIONS["hack"].cache_bytes(geometry(model, 1)) / 2**30 for model in ("2b", "8b")]
    assert [round(size, 2) for size in found] == [7.71, 16.86]


def test_three_lossless_savings():
    stock, exact = geometry("8b", 8).stock_bytes, geometry("8b", 8).lossless_bytes
    assert stock / exact == pytest.approx(2.456, abs=1e-3)


@pytest.mark.parametrize("name", ["layers", "heads", "head_dim", "batch", "guidance", "element_bytes"])
def test_counts_below_one_are_refused(name):
    sizes = {"layers": 1, "heads": 1, "head_dim": 1, name: 0}
    with pytest.raises(InvalidInput, match=name):
        CacheGeometry(schedule=SCHEDULE, **sizes)
