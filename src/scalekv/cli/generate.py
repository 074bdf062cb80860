"""``scalekv generate``: prompts to pictures."""

from __future__ import annotations

from typing import Annotated

import typer

from scalekv.cli.drawing import Request, Run
from scalekv.cli.files import picture_paths
from scalekv.cli.loading import SCENES, TINY, TINY_CLASSES, check_model, check_subject, open_model
from scalekv.cli.options import (
    CACHE,
    OUTPUT,
    PICTURE,
    Aspect,
    BudgetOption,
    CacheDtype,
    CodecOption,
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
    dtype_from,
    option,
    policy_from,
    profile_from,
    whole,
)
from scalekv.cli.output import Output
from scalekv.cli.picture_size import PictureSize
from scalekv.cli.sampling import (
    Classes,
    Negative,
    Seed,
    Temperature,
    TopK,
    TopP,
    check_class_options,
    sampling_from,
    seed_from,
    subjects_from,
)
from scalekv.policies import DEFAULT_POLICY


def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="What to draw; several are one batch.")
    ] = None,
    classes: Classes = None,
    model: Model = SCENES,
    budget: BudgetOption = None,
    policy: PolicyOption = DEFAULT_POLICY,
    strict: Strict = False,
    codec: CodecOption = None,
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
    seed: Seed = None,
    negative: Negative = None,
    guidance: Guidance = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    dtype: Dtype = None,
    cache_dtype: CacheDtype = None,
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
    the built-in model draws, which knows solids on a floor.
    """
    output = Output(json=json, quiet=quiet)
    wanted = PictureSize.parse(size, aspect)
    chosen, supplied, number = policy_from(policy, budget, strict, codec), profile_from(profile), seed_from(seed)
    prompts = subjects_from(prompts, classes, count)
    sampling = sampling_from(guidance, temperature, top_k, top_p, negative)
    if classes:
        check_class_options(temperature=temperature, negative=negative, size=size, aspect=aspect)
        model = TINY_CLASSES if model in (SCENES, TINY) else model
    name, held = dtype_from(dtype), dtype_from(cache_dtype, "--cache-dtype")
    texts, numbers = [text for text in prompts for _ in range(count)], range(number, number + len(prompts) * count)
    paths = picture_paths(out, texts, numbers, sheets=compare)
    check_model(model)
    check_subject(model, bool(classes))
    arguments = {**wanted.pipeline_arguments(), **sampling}
    request = Request(prompts, count, number, paths, supplied, arguments)
    with output.guarded():
        pipeline = open_model(model, name, device, held)
        check_subject(model, bool(classes), pipeline)
        Run(output, model, pipeline, request).draw(chosen, compare)
