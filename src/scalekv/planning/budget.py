"""Budgets: how many bytes of history a run may keep."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Union

from scalekv.errors import BudgetError
from scalekv.planning.geometry import CacheGeometry
from scalekv.planning.units import format_bytes, parse_bytes

BudgetLike = Union["Budget", str, float, int]

_FORMS = "write a share such as '10%' or 0.1, bytes such as '512MiB', or '650 tokens'"


@dataclass(frozen=True)
class Budget:
    """A limit on the history a cache keeps, in exactly one of three units.

    Args:
        fraction: share of the lossless cache, 0 < fraction <= 1.
        nbytes: bytes over all layers, heads and rows.
        tokens: mean tokens per head and layer, the unit of the papers' tables.

    Raises:
        BudgetError: none or several units given, or a value out of range.
    """

    fraction: float | None = None
    nbytes: int | None = None
    tokens: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.fraction, self.nbytes, self.tokens) if value is not None]
        if len(given) != 1:
            raise BudgetError(f"A budget has exactly one unit, got {len(given)}; {_FORMS}.")
        if not 0 < given[0] < float("inf"):
            raise BudgetError(f"A budget must be more than nothing, got {self}; {_FORMS}.")
        if self.fraction is not None and self.fraction > 1:
            raise BudgetError(f"A budget of {self} is more than the whole cache; use at most 100%.")

    @classmethod
    def parse(cls, text: BudgetLike) -> Budget:
        """Read ``'10%'``, ``'0.1'``, ``0.1``, ``'512MiB'``, an int of bytes or ``'650 tokens'``.

        A plain integer in text is refused, because nobody can tell 10 bytes from 10 percent.

        Raises:
            BudgetError: the text is none of these, or the value is out of range.
        """
        if isinstance(text, Budget):
            return text
        if isinstance(text, bool):
            raise BudgetError(f"Cannot read the budget {text!r}; {_FORMS}.")
        if isinstance(text, int):
            return cls(nbytes=text)
        if isinstance(text, float):
            return cls(fraction=text)
        words = str(text).strip()
        if re.fullmatch("0+", words):
            raise BudgetError(f"The budget {text!r} is nothing; {_FORMS}.")
        number = r"([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)"
        if match := re.fullmatch(number + r"\s*%", words):
            return cls(fraction=float(match[1]) / 100)
        if match := re.fullmatch(number + r"\s*(?:t|tok|tokens?)", words):
            return cls(tokens=float(match[1]))
        if re.fullmatch(r"[0-9]*\.[0-9]+", words):
            return cls(fraction=float(words))
        try:
            return cls(nbytes=parse_bytes(words))
        except ValueError:
            raise BudgetError(f"Cannot read the budget {text!r}; {_FORMS}.") from None

    def bytes_for(self, geometry: CacheGeometry) -> int:
        """The limit in bytes for ``geometry``, rounded down."""
        if self.nbytes is not None:
            return self.nbytes
        if self.tokens is not None:
            return int(self.tokens * geometry.token_bytes)
        assert self.fraction is not None
        return int(self.fraction * geometry.lossless_bytes)

    def __str__(self) -> str:
        if self.fraction is not None:
            return f"{100 * self.fraction:.6g}%"
        if self.tokens is not None:
            return f"{self.tokens:.6g} tokens"
        assert self.nbytes is not None
        return format_bytes(self.nbytes)
