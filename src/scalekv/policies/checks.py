"""Checks of hyper-parameters, made when a policy is built and not in the middle of a picture."""

from __future__ import annotations

from typing import Any

from scalekv.errors import InvalidInput


def check_whole(name: str, value: Any, least: int | None = None) -> None:
    """Refuse anything but an integer, or one below ``least``.

    Raises:
        InvalidInput: names the hyper-parameter and the value.
    """
    if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
        bound = "" if least is None else f", {least} or more"
        raise InvalidInput(f"{name} must be a whole number{bound}; got {value!r}.")


def check_odd(name: str, value: Any) -> None:
    """Refuse anything but an odd whole number from 1: the width of a pool that is centred on its token.

    Raises:
        InvalidInput: names the hyper-parameter and the value.
    """
    check_whole(name, value, least=1)
    if value % 2 == 0:
        raise InvalidInput(f"{name} must be odd; got {value}.")


def check_share(name: str, value: Any) -> None:
    """Refuse anything but a number in 0..1.

    Raises:
        InvalidInput: names the hyper-parameter and the value.
    """
    check_range(name, value, 0, 1)


def check_range(name: str, value: Any, low: float, high: float) -> None:
    """Refuse anything but a number from ``low`` to ``high``.

    Raises:
        InvalidInput: names the hyper-parameter, the bounds and the value.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidInput(f"{name} must be a number in {low:g}..{high:g}; got {value!r}.")


def check_flag(name: str, value: Any) -> None:
    """Refuse anything but ``True`` and ``False``.

    Raises:
        InvalidInput: names the hyper-parameter and the value.
    """
    if not isinstance(value, bool):
        raise InvalidInput(f"{name} must be True or False; got {value!r}.")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuse anything that is not one of ``choices``.

    Raises:
        InvalidInput: names the hyper-parameter, the value and the choices.
    """
    if value not in choices:
        raise InvalidInput(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}.")


def check_after(timing: Any, reason: str) -> None:
    """Refuse timing ``"before"`` for a method that it means nothing for.

    Raises:
        InvalidInput: gives the reason.
    """
    if timing != "after":
        raise InvalidInput(f"timing must be 'after', got {timing!r}: {reason}.")
