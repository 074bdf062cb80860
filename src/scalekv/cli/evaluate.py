"""``scalekv evaluate``: methods x budgets x prompts x seeds against the full cache, into a folder of results."""

from __future__ import annotations

import os
import shlex
from typing import Annotated, Any

import typer

from scalekv.cli.evaluating import Evaluation, Wanted
from scalekv.cli.files import check_new_folder, expanded
from scalekv.cli.loading import SCENES, TINY, TINY_CLASSES, check_model, check_subject
from scalekv.cli.options import (
    CACHE,
    OUTPUT,
    PICTURE,
    Aspect,
    CacheDtype,
    Device,
    Dtype,
    Guidance,
    Json,
    Model,
    ProfileOption,
    Quiet,
    Size,
    Strict,
    checked,
    dtype_from,
    option,
    profile_from,
    whole,
)
from scalekv.cli.output import Output
from scalekv.cli.picture_size import PictureSize
from scalekv.cli.prompts import prompts_from
from scalekv.cli.sampling import Temperature, TopK, TopP, check_class_options, sampling_from
from scalekv.errors import InvalidInput
from scalekv.evaluation.jobs import Grid, Share, parse_budgets, spaced_seeds
from scalekv.evaluation.subjects import class_list
from scalekv.policies.specs import parse_specs

MEASURE = "Measure"


def evaluate(
    context: typer.Context,
    out: Annotated[
        str,
        option("--out", "-o", panel=OUTPUT, metavar="FOLDER", help="Of the run; one that was begun is continued."),
    ],
    prompts: Annotated[
        str | None,
        option(
            "--prompts",
            panel=MEASURE,
            metavar="SOURCE",
            help="A file (one prompt a line, or JSON, JSONL, CSV of a benchmark), a benchmark's folder, 'scenes' for "
            "the held-out prompts of the built-in world, or how many of these. Default scenes.",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        option(
            "--classes",
            panel=MEASURE,
            metavar="CLASSES",
            help="For VAR, instead of prompts: classes by number or name, such as 0-9,207,'tabby cat', or 'all'.",
        ),
    ] = None,
    per_class: Annotated[
        int, option("--per-class", panel=MEASURE, parser=whole, help="Pictures of each class and seed.")
    ] = 1,
    limit: Annotated[
        int | None, option("--limit", panel=MEASURE, parser=whole, help="Only the first prompts of a file.")
    ] = None,
    seeds: Annotated[int, option("--seeds", panel=MEASURE, parser=whole, help="How many seeds.")] = 1,
    seed: Annotated[
        int, option("--seed", "-s", panel=MEASURE, parser=whole, help="The first; prompt i is drawn with seed + i.")
    ] = 0,
    metric: Annotated[
        list[str] | None,
        option(
            "--metric",
            panel=MEASURE,
            metavar="NAME",
            help="Beside PSNR, SSIM and MS-SSIM: lpips, fid, or MODULE:NAME (FILE.py:NAME) of a function of picture, "
            "reference and prompt. Repeat it for several.",
        ),
    ] = None,
    model: Model = SCENES,
    policies: Annotated[
        str,
        option(
            "--policies",
            panel=CACHE,
            env="POLICIES",
            metavar="NAMES",
            help="Methods, separated by commas, with settings as in scalekv:pooling=max; see 'scalekv methods'.",
        ),
    ] = "all",
    budgets: Annotated[
        str, option("--budgets", panel=CACHE, env="BUDGETS", metavar="SHARES", help="Separated by commas.")
    ] = "50%,20%,10%,4%,2%",
    strict: Strict = False,
    profile: ProfileOption = None,
    batch: Annotated[
        int, option("--batch", panel=PICTURE, env="BATCH", parser=whole, help="Pictures drawn together.")
    ] = 4,
    size: Size = None,
    aspect: Aspect = None,
    guidance: Guidance = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    dtype: Dtype = None,
    cache_dtype: CacheDtype = None,
    device: Device = None,
    save_pictures: Annotated[
        bool, option("--save-pictures", panel=OUTPUT, help="Keep all pictures, for 'scalekv export'.")
    ] = False,
    sheet: Annotated[
        int, option("--sheet", panel=OUTPUT, parser=whole, help="Prompts whose pictures are kept anyway.")
    ] = 8,
    npz: Annotated[
        str | None,
        option(
            "--npz",
            panel=OUTPUT,
            metavar="FOLDER",
            help="Also write the .npz files of the ImageNet evaluator, one for every method and budget.",
        ),
    ] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Measure methods against the full cache.

    Every prompt is drawn with the full cache and with every method at every budget, from the same seed. Stopped at any
    moment, the same command goes on where it was. Several GPUs share the work under 'accelerate launch -m scalekv'.
    """
    share = Share.of_environment(os.environ)
    specs = parse_specs([policies])
    seed_list = spaced_seeds(_from(0, "--seed", seed), _from(1, "--seeds", seeds))
    grid = Grid(tuple(spec.strict() for spec in specs) if strict else specs, parse_budgets([budgets]), seed_list)
    picture, kind = PictureSize.parse(size, aspect), dtype_from(dtype)
    sampling = sampling_from(guidance, temperature, top_k, top_p, None)
    if classes is not None:
        if prompts is not None:
            raise InvalidInput("Give --prompts or --classes, got both.")
        check_class_options(temperature=temperature, size=size, aspect=aspect)
        model = TINY_CLASSES if model in (SCENES, TINY) else model
    check_model(model)
    check_subject(model, classes is not None, option="--classes")
    archives = None if npz is None else expanded(npz)
    if archives is not None:
        check_new_folder(archives, "--npz")
    wanted = Wanted(
        model=model,
        dtype=kind,
        cache_dtype=dtype_from(cache_dtype, "--cache-dtype"),
        device=device,
        grid=grid,
        subjects=None if classes is not None else prompts_from(prompts or "scenes", limit),
        classes=None if classes is None else class_list(classes),
        per_class=_from(1, "--per-class", per_class),
        batch=_from(1, "--batch", batch),
        generation={**picture.pipeline_arguments(), **sampling},
        profile=profile_from(profile),
        metrics=tuple(metric or ()),
        save_pictures=save_pictures,
        sheet=_from(0, "--sheet", sheet),
        out=expanded(out),
        archives=archives,
        command=shlex.join(["scalekv", *_words(context)]),
    )
    Evaluation(Output(json=json, quiet=quiet), wanted, share).run()


def _from(least: int, name: str, value: int) -> int:
    checked(name, value, lambda given: least <= given < 2**62, f"a whole number from {least}")
    return value


def _words(context: typer.Context) -> list[str]:
    words: Any = context.obj
    return [str(word) for word in words] if isinstance(words, list) else []
