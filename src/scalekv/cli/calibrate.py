"""``scalekv calibrate``: prompts to a profile, with a picture of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from scalekv.cli.files import check_profile_file, read_prompts
from scalekv.cli.loading import SCENES, check_model, open_model
from scalekv.cli.options import (
    SAMPLING,
    Aspect,
    CacheDtype,
    Device,
    Dtype,
    Guidance,
    Json,
    Model,
    Quiet,
    Size,
    check_guidance,
    checked,
    dtype_from,
    option,
    profile_from,
    whole,
    without_none,
)
from scalekv.cli.output import Output
from scalekv.cli.picture_size import PictureSize
from scalekv.cli.profile_map import RoleMap, save_profile
from scalekv.errors import InvalidInput
from scalekv.planning.merging import check_disjoint


def calibrate(
    prompts_file: Annotated[
        Path, typer.Argument(metavar="PROMPTS", help="Text file, one prompt (or class) per line; 10 do.")
    ],
    out: Annotated[Path, option("--out", "-o", metavar="FILE", help="The profile, a .json name.")],
    model: Model = SCENES,
    name: Annotated[
        str | None,
        option("--name", metavar="NAME", help="Model name in the profile. Default that of --add-to, or the model's."),
    ] = None,
    add_to: Annotated[
        str | None,
        option("--add-to", metavar="FILE", help="Earlier profile, same settings: --out gets the mean of all prompts."),
    ] = None,
    queries: Annotated[int, option("--queries", parser=whole, help="Queries sampled per segment.")] = 256,
    top: Annotated[int, option("--top", parser=whole, help="K' of the Attention Selectivity Index.")] = 64,
    sensitivity: Annotated[
        bool,
        option(
            "--sensitivity/--no-sensitivity",
            help="Differentiate what is drawn by the outputs of all heads, for bytewise; keeps a segment's states.",
        ),
    ] = True,
    size: Size = None,
    aspect: Aspect = None,
    seed: Annotated[
        int, option("--seed", "-s", panel=SAMPLING, env="SEED", parser=whole, help="Prompt i is drawn with seed + i.")
    ] = 0,
    guidance: Guidance = None,
    dtype: Dtype = None,
    cache_dtype: CacheDtype = None,
    device: Device = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Measure a model and write its profile.

    The profile tells which layers are drafters. Writes a PNG of the map beside the profile, if matplotlib is installed.
    An existing profile is replaced together with its PNG; other files never are. 'scalekv stability' tells how far
    profiles of different prompts agree.
    """
    output, begin = Output(json=json, quiet=quiet), time.perf_counter()
    prompts, wanted, kind = read_prompts(prompts_file), PictureSize.parse(size, aspect), dtype_from(dtype)
    held = dtype_from(cache_dtype, "--cache-dtype")
    check_guidance(guidance)
    checked("--seed", seed, lambda value: 0 <= value < 2**62, "a whole number from 0")
    if queries < 1 or top < 1:
        raise InvalidInput(f"--queries is {queries} and --top is {top}; expected at least 1 each.")
    check_profile_file(out)
    earlier = profile_from(add_to)
    if earlier is not None:
        check_disjoint([earlier.details, {"runs": [{"seed": seed, "prompts": prompts}]}])
    check_model(model)
    generation = {**wanted.pipeline_arguments(), **without_none(guidance_scale=guidance)}
    with output.guarded():
        from scalekv.calibration import calibrate as measure

        pipeline = open_model(model, kind, device, held)
        if hasattr(pipeline, "class_names") and wanted.pipeline_arguments():
            raise InvalidInput(f"{model} draws one size only; leave --size and --aspect out.")
        with output.progress("calibrating", len(prompts)) as steps:
            profile = measure(
                pipeline,
                prompts,
                name=name or (earlier.model if earlier else None) or pipeline.config.model_name or model,
                earlier=earlier,
                seed=seed,
                queries=queries,
                top=top,
                sensitivity=sensitivity,
                progress=lambda done, total: steps.advance(),
                **generation,
            )
        roles = RoleMap.of(profile)
        picture = save_profile(roles, out)
        _report(output, roles, out, picture, time.perf_counter() - begin)
        output.result(_as_dict(roles, out, picture, time.perf_counter() - begin))


def _report(output: Output, roles: RoleMap, out: Path, picture: Path | None, seconds: float) -> None:
    for line in roles.text():
        output.say(line)
    output.say()
    if picture is None:
        output.note("No picture: matplotlib is not installed; pip install 'scalekv[plot]'.")
    beside = f" and {picture}" if picture else ""
    prompts = roles.profile.details.get("prompts")
    output.say(f"{out}{beside}: {roles.profile.model}, {prompts} prompts, {seconds:.1f} s")


def _as_dict(roles: RoleMap, out: Path, picture: Path | None, seconds: float) -> dict[str, Any]:
    profile = roles.profile
    return {
        "profile": str(out),
        "picture": None if picture is None else str(picture),
        "model": profile.model,
        "layers": profile.layers,
        "heads": profile.heads,
        "schedule": profile.schedule.key,
        "drafters": {str(segment): list(layers) for segment, layers in roles.drafters.items()},
        "details": dict(profile.details),
        "seconds": seconds,
    }
