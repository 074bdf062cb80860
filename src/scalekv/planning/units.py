"""Bytes as people read and write them."""

from __future__ import annotations

import re

_UNITS = {"B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS[f"{_letter}iB"] = 1024**_power
    _UNITS[f"{_letter}B"] = 1000**_power

_LOOKUP = {name.lower(): size for name, size in _UNITS.items()}


def parse_bytes(text: str) -> int:
    """Read ``'24GB'`` (decimal), ``'512MiB'`` (binary) or ``'100 B'`` as a number of bytes.

    Raises:
        ValueError: no number, no unit, or an unknown unit.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]+)\s*", text)
    if match is None or match[2].lower() not in _LOOKUP:
        raise ValueError(f"Cannot read {text!r} as bytes; write a number and a unit, such as '24GB' or '512MiB'.")
    return int(float(match[1]) * _LOOKUP[match[2].lower()])


def format_bytes(count: int) -> str:
    """``count`` bytes with three significant figures in binary units: ``'1.07 GiB'``."""
    if abs(count) < 1024:
        return f"{count} B"
    size = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if abs(size) < 1000:
            return f"{size:.3g} {unit}"
    return f"{size / 1024:.3g} TiB"
