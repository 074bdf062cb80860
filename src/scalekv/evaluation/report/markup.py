"""HTML whose texts are always escaped."""

from __future__ import annotations

from html import escape


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str | bool) -> Markup:
    """One element.

    Args:
        name: of the element.
        children: inside it; what is no :class:`Markup` is escaped.
        attributes: by name: a trailing ``_`` is taken off (``class_``), others become hyphens; ``True`` for one
            without a value, ``False`` for none.
    """
    told = ""
    for key, value in attributes.items():
        if value is not False:
            told += f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
    if name in ("img", "br", "wbr"):
        return Markup(f"<{name}{told}>")
    return Markup(f"<{name}{told}>{joined(*children)}</{name}>")


def joined(*children: str) -> Markup:
    """Several pieces one after the other; what is no :class:`Markup` is escaped."""
    return Markup("".join(child if isinstance(child, Markup) else escape(child) for child in children))
