"""Methods with settings, as people write them on command lines."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from scalekv.errors import InvalidInput
from scalekv.planning import BudgetLike
from scalekv.policies import POLICIES, Full, Policy, make_policy

_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None}


@dataclass(frozen=True)
class PolicySpec:
    """A method with settings, as people write it: ``scalekv`` or ``scalekv:pooling=max,strict=true``.

    Args:
        name: of a known policy.
        settings: its fields but for the budget, sorted by name.

    Raises:
        InvalidInput: an unknown method or setting, a value that it refuses, or a budget among the settings.
    """

    name: str
    settings: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if "budget" in dict(self.settings):
            raise InvalidInput(
                f"Leave the budget out of {self.label!r}; the budgets are given for all methods at once."
            )
        self.policy(None)

    @classmethod
    def parse(cls, text: str) -> PolicySpec:
        """Read one spec.

        Raises:
            InvalidInput: as above, or text that is no spec.
        """
        name, separator, rest = text.strip().partition(":")
        pieces = rest.split(",") if separator else []
        settings: dict[str, Any] = {}
        for piece in pieces:
            key, equals, value = (part.strip() for part in piece.partition("="))
            if not (key and equals and value):
                raise InvalidInput(f"Cannot read the policy {text!r}; write NAME or NAME:setting=value,setting=value.")
            settings[key] = _value(value)
        known = name.lower().replace("-", "_")
        return cls(known if known in POLICIES else name, tuple(sorted(settings.items())))

    @property
    def label(self) -> str:
        """The spec as text; equal specs have equal labels."""
        return _labelled(self.name, self.settings)

    def strict(self) -> PolicySpec:
        """This method, with its peak held under the budget."""
        return PolicySpec(self.name, tuple(sorted({**dict(self.settings), "strict": True}.items())))

    def policy(self, budget: BudgetLike | None) -> Policy:
        """The policy with a budget; ``None`` is its own default."""
        return make_policy(self.name, budget, **dict(self.settings))


def label_of(policy: Policy, but: Collection[str] = ("budget",)) -> str:
    """A policy as a spec: its name, and every setting that is not the method's default, except those in ``but``."""
    changed = [(one.name, getattr(policy, one.name)) for one in fields(policy) if one.name not in but]
    defaults = {one.name: one.default for one in fields(policy)}
    return _labelled(policy.name, sorted((name, value) for name, value in changed if value != defaults[name]))


def file_name(text: str) -> str:
    """``text`` as a name that every file system takes."""
    return re.sub(r"[^\w.,=+-]", "-", text.replace(":", "+").replace("%", "pct"))


def parse_specs(texts: Sequence[str]) -> tuple[PolicySpec, ...]:
    """Read lists of specs separated by commas; ``all`` is every known method.

    ``a:x=1,y=2,b`` is the methods ``a`` (with two settings) and ``b``.

    Raises:
        InvalidInput: none at all, or one that cannot be read.
    """
    specs: list[str] = []
    for piece in (piece.strip() for text in texts for piece in text.split(",")):
        name = piece.partition("=")[0]
        if "=" in piece and ":" not in name and specs:
            specs[-1] += f",{piece}"
        elif piece == "all":
            specs += [name for name in POLICIES if name != Full.name]
        elif piece:
            specs.append(piece)
    if not specs:
        raise InvalidInput("There is no policy to evaluate; name some, such as 'scalekv,random', or 'all'.")
    return tuple(dict.fromkeys(PolicySpec.parse(spec) for spec in specs))


def _labelled(name: str, settings: Iterable[tuple[str, Any]]) -> str:
    told = ",".join(f"{key}={_shown(value)}" for key, value in settings)
    return f"{name}:{told}" if told else name


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _shown(value: Any) -> str:
    return next((word for word, meant in _WORDS.items() if value is meant), str(value))
