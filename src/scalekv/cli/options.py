"""Options that several commands share, and how their text is read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

import typer

from scalekv.errors import InvalidInput
from scalekv.planning import Budget, Profile, read_profile
from scalekv.policies import Policy, make_policy
from scalekv.policies.specs import PolicySpec

DEFAULT_BUDGET = "10%"
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
_DTYPE_NICKNAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16"}

CACHE, PICTURE, SAMPLING, OUTPUT = "Cache", "Picture", "Sampling", "Output"


def whole(text: str | int) -> int:
    """Read a whole number; typer's own message does not say what was given."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number") from None


def real(text: str | float) -> float:
    """Read a number."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number") from None


def option(*names: str, help: str, panel: str | None = None, env: str | None = None, **settings: Any) -> Any:
    """An option; ``env`` is the rest of its ``SCALEKV_*`` variable. Optional ones tell their default in ``help``."""
    if settings.get("parser") in (whole, real):
        settings["metavar"] = "NUMBER"
    return typer.Option(
        *names,
        help=help,
        rich_help_panel=panel,
        envvar=f"SCALEKV_{env}" if env else None,
        show_envvar=False,
        **settings,
    )


Json = Annotated[
    bool, option("--json", panel=OUTPUT, help="Print one JSON value, and nothing else, on standard output.")
]
Quiet = Annotated[bool, option("--quiet", "-q", panel=OUTPUT, env="QUIET", help="No progress and no report.")]
BudgetOption = Annotated[
    str | None,
    option(
        "--budget",
        panel=CACHE,
        env="BUDGET",
        metavar="SHARE",
        help="History to keep: a share of the lossless cache (10%), bytes (512MiB) or '650 tokens'. Default 10%; "
        "100% is exact.",
    ),
]
PolicyOption = Annotated[
    str, option("--policy", panel=CACHE, env="POLICY", metavar="NAME", help="Method; see 'scalekv methods'.")
]
Strict = Annotated[
    bool, option("--strict", panel=CACHE, env="STRICT", help="Hold the peak under the budget, scratch included.")
]
CodecOption = Annotated[
    str | None,
    option(
        "--codec",
        panel=CACHE,
        env="CODEC",
        metavar="NAME",
        help="How history is held once it would not fit otherwise: int8, int6, int4, fp8, or keys and values apart, "
        "int8/int4. Default that of the method, mostly none: the type attention computes in.",
    ),
]
ProfileOption = Annotated[
    str | None,
    option(
        "--profile",
        panel=CACHE,
        env="PROFILE",
        metavar="FILE",
        help=f"Profile from 'scalekv calibrate', or {' or '.join(Profile.builtin_names())}. Default the model's own.",
    ),
]
Size = Annotated[
    str | None,
    option(
        "--size",
        panel=PICTURE,
        env="SIZE",
        metavar="SIZE",
        help="0.06M, 0.25M, 0.60M, 1M, or WIDTHxHEIGHT in pixels (the nearest there is). Default the model's own.",
    ),
]
Aspect = Annotated[
    str | None,
    option(
        "--aspect",
        panel=PICTURE,
        env="ASPECT",
        metavar="W:H",
        help="Width to height: 16:9 or 1.78 (the nearest there is). Default square.",
    ),
]
Guidance = Annotated[
    float | None,
    option(
        "--guidance",
        panel=SAMPLING,
        env="GUIDANCE",
        parser=real,
        help="How closely to follow prompt or class; 1, for VAR 0, halves work and cache. Default the model's.",
    ),
]
Dtype = Annotated[
    str | None,
    option("--dtype", env="DTYPE", metavar="NAME", help="float32, bfloat16 or float16. Default as stored."),
]
CacheDtype = Annotated[
    str | None,
    option(
        "--cache-dtype",
        panel=CACHE,
        env="CACHE_DTYPE",
        metavar="NAME",
        help="What attention computes in and the cache holds: float32, bfloat16 or float16. Default that of the model.",
    ),
]
Device = Annotated[
    str | None,
    option("--device", env="DEVICE", metavar="NAME", help="cpu, cuda, cuda:1 or mps. Default the best there is."),
]
Model = Annotated[
    str,
    option(
        "--model",
        "-m",
        env="MODEL",
        metavar="FOLDER",
        help="Pipeline folder or hub name; scenes is built in, tiny-random and tiny-random-var have random weights.",
    ),
]


def policy_from(spec: str | PolicySpec, budget: str | None, strict: bool, codec: str | None = None) -> Policy:
    """The policy of a command line, ``name`` or ``name:setting=value``; without a budget, 10 % or, for ``full``, all.

    Raises:
        InvalidInput: an unknown name, setting or codec, or a budget that cannot be read.
    """
    spec = PolicySpec.parse(spec) if isinstance(spec, str) else spec
    if budget is None:
        budget = DEFAULT_BUDGET if Budget.parse(spec.policy(None).budget).fraction != 1 else "100%"
    settings = {**dict(spec.settings), **without_none(strict=strict or None, codec=codec)}
    return make_policy(spec.name, budget, **settings)


def dtype_from(text: str | None, name: str = "--dtype") -> str | None:
    """The full name of a floating-point type, the value of the option ``name``.

    Raises:
        InvalidInput: an unknown one.
    """
    if text is None:
        return None
    dtype = text.strip().lower().removeprefix("torch.")
    dtype = _DTYPE_NICKNAMES.get(dtype, dtype)
    if dtype not in DTYPES:
        raise InvalidInput(f"{name} is {text!r}; choose one of {', '.join(DTYPES)}.")
    return dtype


def profile_from(name: str | None) -> Profile | None:
    """The profile in a file, or the built-in one of a name, if one is named.

    Raises:
        ProfileError: there is none, or it cannot be read.
    """
    return None if name is None else read_profile(name)


def check_guidance(value: float | None) -> float | None:
    """``--guidance``, in the range in which pictures can come out.

    Raises:
        InvalidInput: it is not.
    """
    return checked("--guidance", value, lambda given: 0 <= given <= 1000, "a number from 0 to 1000")


def check_text(name: str, text: str) -> str:
    """``text`` if it can be written as UTF-8.

    Raises:
        InvalidInput: the terminal handed over bytes that are no text.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{name} {text!a:.80} is no text in UTF-8; check the encoding of your terminal.") from error
    return text


def checked(name: str, value: float | None, accepted: Callable[[float], bool], expected: str) -> float | None:
    """``value`` if it is finite and ``accepted``.

    Raises:
        InvalidInput: it is not; the message says what is ``expected``.
    """
    if value is not None and not (math.isfinite(value) and accepted(value)):
        raise InvalidInput(f"{name} is {value:g}; expected {expected}.")
    return value


def parse_bytes_option(name: str, text: str | None) -> int | None:
    """Bytes above zero, such as ``24GB``.

    Raises:
        InvalidInput: no number and unit, or nothing.
    """
    from scalekv.planning import parse_bytes

    if text is None:
        return None
    try:
        count = parse_bytes(text)
    except (ValueError, OverflowError):
        count = 0
    if count <= 0:
        raise InvalidInput(f"{name} is {text!r}; write a number above 0 and a unit, such as '24GB' or '512MiB'.")
    return count


def without_none(**values: Any) -> dict[str, Any]:
    """The settings that were given; the others stay with their owner's default."""
    return {name: value for name, value in values.items() if value is not None}
