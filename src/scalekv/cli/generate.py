"""``scalekv generate``: prompts to pictures."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

import typer

from scalekv.cli.drawing import Request, Run
from scalekv.cli.files import picture_paths
from scalekv.cli.loading import TINY, TINY_CLASSES, check_model, check_subject, open_model
from scalekv.cli.options import (
    CACHE,
    OUTPUT,
    PICTURE,
    SAMPLING,
    Aspect,
    BudgetOption,
    Device,
    Dtype,
    Guidance,
    Json,
    Model,
    PolicyOption,
    ProfileOption,
    Quiet,
    Size,
    Strict,
    check_guidance,
    check_text,
    checked,
    dtype_from,
    option,
    policy_from,
    profile_from,
    real,
    whole,
    without_none,
)
from scalekv.cli.output import Output
from scalekv.cli.picture_size import PictureSize
from scalekv.errors import InvalidInput

MOST_IMAGES = 10_000
"""Of one prompt in one batch, far beyond what any memory holds."""


def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="What to draw; several are one batch.")
    ] = None,
    classes: Annotated[
        list[str] | None,
        option(
            "--class",
            metavar="CLASS",
            help="For VAR, instead of prompts: an ImageNet class by number (207) or name ('golden retriever'). Repeat "
            "it for a batch.",
        ),
    ] = None,
    model: Model = TINY,
    budget: BudgetOption = None,
    policy: PolicyOption = "scalekv",
    strict: Strict = False,
    profile: ProfileOption = None,
    compare: Annotated[
        bool,
        option(
            "--compare",
            panel=CACHE,
            env="COMPARE",
            help="Also draw with the full cache, and write both side by side, with PSNR.",
        ),
    ] = False,
    size: Size = None,
    aspect: Aspect = None,
    count: Annotated[
        int, option("--count", "-n", panel=PICTURE, env="COUNT", parser=whole, help="Images of each prompt.")
    ] = 1,
    seed: Annotated[
        int | None,
        option(
            "--seed",
            "-s",
            panel=SAMPLING,
            env="SEED",
            parser=whole,
            help="Image i gets seed + i. Default random, reported.",
        ),
    ] = None,
    negative: Annotated[
        str | None,
        option("--negative", panel=SAMPLING, env="NEGATIVE", metavar="TEXT", help="What to steer away from."),
    ] = None,
    guidance: Guidance = None,
    temperature: Annotated[
        float | None,
        option(
            "--temperature",
            panel=SAMPLING,
            env="TEMPERATURE",
            parser=real,
            help="Above 0; lower is calmer. Default the model's.",
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        option(
            "--top-k",
            panel=SAMPLING,
            env="TOP_K",
            parser=whole,
            help="1 takes the likelier bit, 0 is off. Default the model's.",
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        option(
            "--top-p",
            panel=SAMPLING,
            env="TOP_P",
            parser=real,
            help="Bits likelier than this are certain, 0 is off. Default the model's.",
        ),
    ] = None,
    dtype: Dtype = None,
    device: Device = None,
    out: Annotated[
        str | None,
        option(
            "--out",
            "-o",
            panel=OUTPUT,
            env="OUT",
            metavar="PATH",
            help="A folder, or a .png name, in which {prompt}, {seed} and {index} are filled in. Default names in the "
            "current folder.",
        ),
    ] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Draw pictures.

    One line says what the cache took. Every PNG
    carries its prompt, seed and settings. Without --model,
    a tiny network with random weights draws.
    """
    output = Output(json=json, quiet=quiet)
    wanted = PictureSize.parse(size, aspect)
    chosen, supplied, number = policy_from(policy, budget, strict), profile_from(profile), _seed(seed)
    prompts = _subjects(prompts, classes, count)
    check_text("The text of --negative", negative or "")
    sampling = _sampling(guidance, temperature, top_k, top_p)
    if classes:
        _check_class_options(temperature=temperature, negative=negative, size=size, aspect=aspect)
        model = TINY_CLASSES if model == TINY else model
    name = dtype_from(dtype)
    texts, numbers = [text for text in prompts for _ in range(count)], range(number, number + len(prompts) * count)
    paths = picture_paths(out, texts, numbers, sheets=compare)
    check_model(model)
    check_subject(model, bool(classes))
    arguments = {**wanted.pipeline_arguments(), **sampling, **without_none(negative_prompt=negative)}
    request = Request(prompts, count, number, paths, chosen, supplied, arguments)
    with output.guarded():
        pipeline = open_model(model, name, device)
        check_subject(model, bool(classes), pipeline)
        Run(output, model, pipeline, request).draw(compare)


def _seed(seed: int | None) -> int:
    if seed is None:
        return secrets.randbelow(2**32)
    if not 0 <= seed < 2**63:
        raise InvalidInput(f"--seed is {seed}; expected a whole number from 0 to 2^63 - 1.")
    return seed


def _subjects(prompts: list[str] | None, classes: list[str] | None, count: int) -> list[str]:
    """What to draw: prompts or classes."""
    if bool(prompts) == bool(classes):
        raise InvalidInput(
            f"Write what to draw: PROMPT, or for VAR models --class; got {'both' if prompts else 'neither'}."
        )
    listed = [*(prompts or []), *(classes or [])]
    _check_texts(listed, count)
    return listed


def _check_class_options(**given: Any) -> None:
    for name, value in without_none(**given).items():
        raise InvalidInput(f"--{name} is {value!r}, which VAR models do not have; leave it out with --class.")


def _check_texts(prompts: list[str], count: int) -> None:
    for prompt in prompts:
        if not check_text("The prompt", prompt).strip():
            raise InvalidInput("A prompt is empty; write what to draw.")
    if not 1 <= count <= MOST_IMAGES:
        raise InvalidInput(f"-n is {count}; expected 1 to {MOST_IMAGES} images of each prompt.")


def _sampling(
    guidance: float | None, temperature: float | None, top_k: int | None, top_p: float | None
) -> dict[str, Any]:
    checked("--top-k", top_k, lambda value: value >= 0, "0 (off) or more")
    return without_none(
        guidance_scale=check_guidance(guidance),
        temperature=checked(
            "--temperature", temperature, lambda value: 0.001 <= value <= 1000, "a number above 0, from 0.001 to 1000"
        ),
        top_k=top_k,
        top_p=checked("--top-p", top_p, lambda value: 0 <= value <= 1, "a number from 0 (off) to 1"),
    )
