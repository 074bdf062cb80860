"""``scalekv compare``: one prompt under several methods and budgets, on one sheet."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from scalekv.cli.comparing import Comparison, Contest
from scalekv.cli.drawing import Request, Run, budget_of, method_of
from scalekv.cli.files import check_new_folder, expanded, picture_paths
from scalekv.cli.loading import SCENES, TINY, TINY_CLASSES, check_model, check_subject, open_model
from scalekv.cli.options import (
    CACHE,
    OUTPUT,
    Aspect,
    CacheDtype,
    CodecOption,
    Device,
    Dtype,
    Guidance,
    Json,
    Model,
    ProfileOption,
    Quiet,
    Size,
    Strict,
    dtype_from,
    option,
    policy_from,
    profile_from,
)
from scalekv.cli.output import Output
from scalekv.cli.picture_size import PictureSize
from scalekv.cli.sampling import (
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
from scalekv.errors import InvalidInput
from scalekv.policies import Policy
from scalekv.policies.specs import parse_specs

SHEET_NAME = "comparison"
"""Begins the names of our own making, so that sheets and pictures of a folder are told apart."""


def compare(
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="What to draw.")] = None,
    class_name: Annotated[
        str | None,
        option("--class", metavar="CLASS", help="For VAR, instead of a prompt: an ImageNet class by number or name."),
    ] = None,
    model: Model = SCENES,
    policies: Annotated[
        str,
        option(
            "--policies",
            panel=CACHE,
            env="POLICIES",
            metavar="NAMES",
            help="Methods, separated by commas, a row each, with settings as in scalekv:queries=all.",
        ),
    ] = "scalekv,streaming_llm,random",
    budgets: Annotated[
        str,
        option("--budgets", panel=CACHE, env="BUDGETS", metavar="SHARES", help="Separated by commas, a column each."),
    ] = "20%,10%,4%",
    strict: Strict = False,
    codec: CodecOption = None,
    profile: ProfileOption = None,
    size: Size = None,
    aspect: Aspect = None,
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
        option("--out", "-o", panel=OUTPUT, env="OUT", metavar="PATH", help="The sheet: a .png name or a folder."),
    ] = None,
    pictures: Annotated[
        Path | None,
        option("--pictures", panel=OUTPUT, metavar="FOLDER", help="Also write the single pictures, to a new folder."),
    ] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Draw one prompt under several methods and budgets.

    Writes one sheet: the picture of the full cache above, then a row per method and a column per budget, with PSNR
    against the full cache and bytes kept under each. A method that cannot meet a budget leaves its place empty.
    """
    output, begin = Output(json=json, quiet=quiet), time.perf_counter()
    wanted, kind = PictureSize.parse(size, aspect), dtype_from(dtype)
    held = dtype_from(cache_dtype, "--cache-dtype")
    listed = _listed("--budgets", budgets)
    specs = parse_specs(_listed("--policies", policies))
    rows = [[policy_from(spec, budget, strict, codec) for budget in listed] for spec in specs]
    _check_different(rows)
    supplied, number = profile_from(profile), seed_from(seed)
    subjects = subjects_from([prompt] if prompt is not None else None, [class_name] if class_name is not None else None)
    sampling = sampling_from(guidance, temperature, top_k, top_p, negative)
    if class_name is not None:
        check_class_options(temperature=temperature, negative=negative, size=size, aspect=aspect)
        model = TINY_CLASSES if model in (SCENES, TINY) else model
    (sheet,) = picture_paths(out, [f"{SHEET_NAME} {subjects[0]}"], [number])
    folder = None if pictures is None else expanded(pictures)
    if folder is not None:
        check_new_folder(folder, "--pictures")
    check_model(model)
    check_subject(model, class_name is not None)
    arguments = {**wanted.pipeline_arguments(), **sampling}
    request = Request(subjects, 1, number, [sheet], supplied, arguments)
    with output.guarded():
        pipeline = open_model(model, kind, device, held)
        check_subject(model, class_name is not None, pipeline)
        comparison = Contest(Run(output, model, pipeline, request), rows).draw()
        comparison.write(sheet, folder)
        _report(output, comparison, sheet, folder)
        output.result({**comparison.to_dict(sheet, folder), "seconds": time.perf_counter() - begin})


def _listed(name: str, text: str) -> list[str]:
    """The entries of a list with commas.

    Raises:
        InvalidInput: an empty one.
    """
    entries = [entry.strip() for entry in text.split(",")]
    if not all(entries):
        raise InvalidInput(f"{name} is {text!r}, with an empty entry; separate entries by single commas.")
    return entries


def _check_different(rows: list[list[Policy]]) -> None:
    seen: set[str] = set()
    for policy in (policy for row in rows for policy in row):
        name = f"{method_of(policy)} at {budget_of(policy)}"
        if name in seen:
            raise InvalidInput(f"{name} is listed twice; list it once.")
        seen.add(name)


def _report(output: Output, comparison: Comparison, sheet: Path, folder: Path | None) -> None:
    comparison.run.say_what_weights()
    columns = ("method", "budget", "PSNR dB", "kept", "of lossless", "peak", "seconds")
    output.table(columns, comparison.table(), left=(0,))
    for entry in comparison.entries:
        if entry.error is not None:
            output.note(f"{method_of(entry.policy)} at {entry.budget} is not drawn: {entry.error}")
    beside = "" if folder is None else f", single pictures in {folder}"
    output.say()
    output.say(f"{sheet}  {comparison.title}{beside}")
