"""What to draw, and how to sample it: options and checks that the drawing commands share."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

from scalekv.cli.options import SAMPLING, check_guidance, check_text, checked, option, real, whole, without_none
from scalekv.errors import InvalidInput

MOST_IMAGES = 10_000
"""Of one prompt in one batch, far beyond what any memory holds."""

Classes = Annotated[
    list[str] | None,
    option(
        "--class",
        metavar="CLASS",
        help="For VAR, instead of prompts: an ImageNet class by number (207) or name ('golden retriever'). Repeat "
        "it for a batch.",
    ),
]
Seed = Annotated[
    int | None,
    option(
        "--seed",
        "-s",
        panel=SAMPLING,
        env="SEED",
        parser=whole,
        help="Image i gets seed + i. Default random, reported.",
    ),
]
Negative = Annotated[
    str | None,
    option("--negative", panel=SAMPLING, env="NEGATIVE", metavar="TEXT", help="What to steer away from."),
]
Temperature = Annotated[
    float | None,
    option(
        "--temperature",
        panel=SAMPLING,
        env="TEMPERATURE",
        parser=real,
        help="Above 0; lower is calmer. Default the model's.",
    ),
]
TopK = Annotated[
    int | None,
    option(
        "--top-k",
        panel=SAMPLING,
        env="TOP_K",
        parser=whole,
        help="Infinity: 1 takes the likelier bit. VAR: so many tokens, the likeliest. 0 is off. Default the model's.",
    ),
]
TopP = Annotated[
    float | None,
    option(
        "--top-p",
        panel=SAMPLING,
        env="TOP_P",
        parser=real,
        help="Infinity: bits likelier than this are certain. VAR: tokens of this share of probability, the likeliest. "
        "0 is off. Default the model's.",
    ),
]


def seed_from(seed: int | None) -> int:
    """The seed of the first image; a random one if none is given.

    Raises:
        InvalidInput: out of range.
    """
    if seed is None:
        return secrets.randbelow(2**32)
    if not 0 <= seed < 2**63:
        raise InvalidInput(f"--seed is {seed}; expected a whole number from 0 to 2^63 - 1.")
    return seed


def subjects_from(prompts: list[str] | None, classes: list[str] | None, count: int = 1) -> list[str]:
    """What to draw: prompts or classes, ``count`` images of each.

    Raises:
        InvalidInput: both, neither, an empty text, one that is no text, or a count out of range.
    """
    if bool(prompts) == bool(classes):
        raise InvalidInput(
            f"Write what to draw: PROMPT, or for VAR models --class; got {'both' if prompts else 'neither'}."
        )
    listed = [*(prompts or []), *(classes or [])]
    for text in listed:
        if not check_text("The prompt", text).strip():
            raise InvalidInput(f"A {'class' if classes else 'prompt'} is empty; write what to draw.")
    if not 1 <= count <= MOST_IMAGES:
        raise InvalidInput(f"-n is {count}; expected 1 to {MOST_IMAGES} images of each prompt.")
    return listed


def check_class_options(**given: Any) -> None:
    """Refuse options, by name, that models which draw classes do not have; ``None`` is not given.

    Raises:
        InvalidInput: one of them is given.
    """
    for name, value in without_none(**given).items():
        raise InvalidInput(f"--{name} is {value!r}, which VAR models do not have; leave it out with --class.")


def sampling_from(
    guidance: float | None, temperature: float | None, top_k: int | None, top_p: float | None, negative: str | None
) -> dict[str, Any]:
    """The sampling arguments of a pipeline that were given.

    Raises:
        InvalidInput: one is out of range, or the negative text is no text.
    """
    check_text("The text of --negative", negative or "")
    checked("--top-k", top_k, lambda value: value >= 0, "0 (off) or more")
    return without_none(
        guidance_scale=check_guidance(guidance),
        temperature=checked(
            "--temperature", temperature, lambda value: 0.001 <= value <= 1000, "a number above 0, from 0.001 to 1000"
        ),
        top_k=top_k,
        top_p=checked("--top-p", top_p, lambda value: 0 <= value <= 1, "a number from 0 (off) to 1"),
        negative_prompt=negative,
    )
