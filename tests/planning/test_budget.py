import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalekv.errors import BudgetError
from scalekv.planning import Budget, CacheGeometry, Schedule, format_bytes, parse_bytes

GEOMETRY = CacheGeometry(32, 16, 128, Schedule.from_sides([1, 2, 4, 8]), batch=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10%", Budget(fraction=0.1)),
        (" 12.5 % ", Budget(fraction=0.125)),
        ("0.1", Budget(fraction=0.1)),
        (0.1, Budget(fraction=0.1)),
        ("100%", Budget(fraction=1.0)),
        ("512MiB", Budget(nbytes=512 * 2**20)),
        ("1.5 GB", Budget(nbytes=1_500_000_000)),
        (4096, Budget(nbytes=4096)),
        ("650 tokens", Budget(tokens=650)),
        ("650t", Budget(tokens=650)),
    ],
)
def test_forms(text, expected):
    assert Budget.parse(text) == expected
    assert Budget.parse(expected) is expected


NONSENSE = ["", "abc", "10", "0%", "-5%", "300%", "0", "nan", "inf", "1e400%", "10 %%", "5 parsecs", "0MB", "0 tokens"]
OUT_OF_RANGE = [0, -1, 0.0, 1.5, -0.1, float("nan"), float("inf"), True]


@pytest.mark.parametrize("text", [*NONSENSE, *OUT_OF_RANGE])
def test_nonsense_is_refused_in_one_sentence(text):
    with pytest.raises(BudgetError) as caught:
        Budget.parse(text)
    message = str(caught.value)
    assert "\n" not in message
    assert "budget" in message.lower()


def test_bytes_for_geometry():
    assert Budget.parse("100%").bytes_for(GEOMETRY) == GEOMETRY.lossless_bytes
    assert Budget.parse("50%").bytes_for(GEOMETRY) == GEOMETRY.lossless_bytes // 2
    assert Budget.parse("3 tokens").bytes_for(GEOMETRY) == 3 * GEOMETRY.token_bytes


@given(st.floats(1e-6, 1.0))
def test_fraction_survives_text(fraction):
    assert Budget.parse(str(Budget(fraction=fraction))).fraction == pytest.approx(fraction, rel=1e-5)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1024, "1 KiB"), (1_150_000_000, "1.07 GiB"), (2**44, "16 TiB")]
)
def test_format_bytes(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize("text", ["24", "GB", "24 XB", "", "-3GB"])
def test_parse_bytes_refuses(text):
    with pytest.raises(ValueError, match="Cannot read"):
        parse_bytes(text)
