"""``scalekv plan``: what a run will take, before a weight is read."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Annotated, Any

from scalekv.cli.loading import TINY, TINY_CLASSES, model_path, open_model, shape_of_pipeline
from scalekv.cli.options import (
    CACHE,
    DTYPES,
    PICTURE,
    Aspect,
    BudgetOption,
    CodecOption,
    Guidance,
    Json,
    PolicyOption,
    ProfileOption,
    Size,
    Strict,
    check_guidance,
    dtype_from,
    option,
    parse_bytes_option,
    policy_from,
    profile_from,
    whole,
)
from scalekv.cli.output import Output
from scalekv.cli.picture_size import PictureSize
from scalekv.errors import BudgetError, InvalidInput
from scalekv.models.catalog import model_names, model_spec
from scalekv.models.footprint import Footprint, ModelShape, RunShape, schedule_of
from scalekv.planning import CONVENTIONS, CachePlan, Profile, Schedule, choose_profile, format_bytes
from scalekv.policies import DEFAULT_POLICY, Policy

TABLE_BUDGETS = ("100%", "50%", "20%", "10%", "4%", "2%")


@dataclass(frozen=True)
class _Question:
    """What was asked, read and checked."""

    run: RunShape
    policy: Policy
    batch: int
    dtype: str
    memory: int | None
    memory_text: str
    profile_note: str


def plan(
    model: Annotated[
        str,
        option("--model", "-m", env="MODEL", metavar="NAME", help=f"{', '.join(model_names())}, or a pipeline folder."),
    ] = "infinity-2b",
    memory: Annotated[
        str | None,
        option("--memory", env="MEMORY", metavar="BYTES", help="What there is, such as 24GB: how many images fit?"),
    ] = None,
    budget: BudgetOption = None,
    policy: PolicyOption = DEFAULT_POLICY,
    strict: Strict = False,
    codec: CodecOption = None,
    profile: ProfileOption = None,
    table: Annotated[bool, option("--table", panel=CACHE, help="Compare budgets, as without --budget.")] = False,
    size: Size = None,
    aspect: Aspect = None,
    batch: Annotated[
        int, option("--batch", "-n", panel=PICTURE, env="BATCH", parser=whole, help="Images at once.")
    ] = 1,
    guidance: Guidance = None,
    dtype: Annotated[
        str, option("--dtype", env="DTYPE", metavar="NAME", help="Of weights and cache: float32, bfloat16 or float16.")
    ] = "bfloat16",
    json: Json = False,
) -> None:
    """Say what a run will take.

    Weights, cache, scratch, and the largest batch that fits into --memory.
    Known models need no weights. Cache bytes are exact; activations and decoding are estimates.
    """
    output, begin = Output(json=json), time.perf_counter()
    name = dtype_from(dtype) or "bfloat16"
    wanted, available = PictureSize.parse(size, aspect), parse_bytes_option("--memory", memory)
    chosen, supplied = policy_from(policy, budget, strict, codec), profile_from(profile)
    check_guidance(guidance)
    if batch < 1:
        raise InvalidInput(f"--batch is {batch}; expected at least 1.")
    with output.guarded():
        shape = find_shape(model)
        schedule = schedule_of(shape, wanted.size, wanted.height, wanted.width, wanted.height_over_width)
        width, height = shape.pixels(schedule)
        if not wanted.is_exactly(width, height, explicit=shape.schedule is not None):
            output.warn(f"{shape.name} does not draw {wanted}; planned is the nearest, {width}x{height}.")
        fitting, note = fitting_profile(shape, schedule, supplied)
        run = RunShape(shape, schedule, 1 if guidance == shape.unguided_scale else 2, DTYPES[name], fitting)
        question = _Question(run, chosen, batch, name, available, memory or "", note)
        footprint = run.footprint(chosen, batch)
        rows = _rows(question) if table or budget is None else []
        _print_text(output, question, footprint, rows)
        seconds = time.perf_counter() - begin
        output.result({**_as_dict(question, footprint), "table": rows, "seconds": seconds})


def find_shape(model: str) -> ModelShape:
    """The shape of a known model, of a pipeline folder, or of an official file whose model is known.

    Raises:
        InvalidInput: nothing known by this name, and no such folder.
        CheckpointError: a folder or file that cannot be read.
    """
    if model in (TINY, TINY_CLASSES):
        return shape_of_pipeline(open_model(model, None, "cpu"), model)
    path = model_path(model)
    if not path.exists():
        if "/" in model or path.suffix:
            raise InvalidInput(f"There is no model at {model}; give a folder or one of {', '.join(model_names())}.")
        return ModelShape.of_spec(model_spec(model))
    if (path / "model_index.json").is_file():
        return ModelShape.of_folder(path)
    from scalekv.models.inspection import inspect_checkpoint

    found = inspect_checkpoint(path)
    if not found.models:
        raise InvalidInput(
            f"{model} is {found.description}, which is no known model; convert it, then plan the folder."
        )
    return ModelShape.of_spec(model_spec(found.models[0]))


def fitting_profile(shape: ModelShape, schedule: Schedule, supplied: Profile | None) -> tuple[Profile | None, str]:
    """The profile to plan with, moved onto ``schedule`` if need be, and a few words about it."""
    known = choose_profile(supplied, shape.profile, shape.known_name, shape.geometry(schedule, 1, 1, 2))
    if known is None:
        return None, "no profile"
    note = f"profile {known.model} ({'measured' if known.roles is None else 'published roles'})"
    if known.schedule != schedule:
        width, height = shape.pixels(known.schedule)
        note += f", adapted from {width}x{height}"
    return known.adapted_to(schedule), note


def _rows(question: _Question) -> list[dict[str, Any]]:
    """The table over budgets; a budget that cannot be met says so."""
    rows = []
    for text in TABLE_BUDGETS:
        row: dict[str, Any] = {"budget": text}
        changed = replace(question.policy, budget=text)
        try:
            footprint = question.run.footprint(changed, question.batch)
        except BudgetError as error:
            rows.append({**row, "error": str(error)})
            continue
        row.update(_cache(footprint), total_bytes=footprint.total_bytes)
        if question.memory is not None:
            row["largest_batch"] = question.run.largest_batch(changed, question.memory)
        rows.append(row)
    return rows


def _cache(footprint: Footprint) -> dict[str, Any]:
    plan, geometry = footprint.plan, footprint.plan.geometry
    return {
        "stock_bytes": geometry.stock_bytes,
        "lossless_bytes": geometry.lossless_bytes,
        "limit_bytes": plan.limit_bytes,
        "nominal_bytes": plan.nominal_bytes,
        "peak_bytes": plan.peak_bytes,
        "scratch_bytes": plan.scratch_bytes,
        "codec": plan.codec,
        "coded_from": plan.coded_from,
    }


def _as_dict(question: _Question, footprint: Footprint) -> dict[str, Any]:
    run, geometry = question.run, footprint.plan.geometry
    width, height = run.model.pixels(run.schedule)
    known = None
    if run.profile is not None:
        known = {"model": run.profile.model, "adapted_from": run.profile.details.get("adapted_from")}
    memory = None
    if question.memory is not None:
        batch = run.largest_batch(question.policy, question.memory)
        memory = {"given_bytes": question.memory, "largest_batch": batch}
    return {
        "model": run.model.name,
        "width": width,
        "height": height,
        "schedule": run.schedule.key,
        "tokens": run.schedule.total_tokens,
        "batch": question.batch,
        "rows": geometry.rows,
        "dtype": question.dtype,
        "policy": question.policy.name,
        "settings": question.policy.settings(),
        "profile": known,
        "cache": _cache(footprint),
        "conventions": {
            name: {"full_bytes": convention.cache_bytes(geometry), "kept_bytes": footprint.plan.nominal_in(convention)}
            for name, convention in CONVENTIONS.items()
        },
        "footprint": footprint.to_dict(),
        "estimates": ["activation_bytes", "decoding_bytes", "total_bytes"],
        "memory": memory,
    }


def _print_text(output: Output, question: _Question, footprint: Footprint, rows: list[dict[str, Any]]) -> None:
    run, plan, geometry = question.run, footprint.plan, footprint.plan.geometry
    width, height = run.model.pixels(run.schedule)
    images = "1 image" if question.batch == 1 else f"{question.batch} images"
    output.say(
        f"{run.model.name}, {width}x{height}, {images}, {question.dtype}: "
        f"{len(run.schedule)} segments, {run.schedule.total_tokens} tokens",
        style="bold",
    )
    output.say(f"{question.policy.name} at {question.policy.settings()['budget']}, {question.profile_note}")
    output.say()
    parts = [("transformer", footprint.transformer_bytes), ("text", footprint.text_encoder_bytes)]
    parts.append(("VAE", footprint.autoencoder_bytes))
    listed = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts if size)
    _line(output, "weights", footprint.weights_bytes, listed)
    _line(output, "cache, stock", geometry.stock_bytes, "what the published code holds")
    _line(output, "cache, lossless", geometry.lossless_bytes, "exact, this library; 100% of a budget")
    _line(output, "cache, kept", plan.nominal_bytes, f"{question.policy.name}, between segments")
    if question.policy.codec != "none":
        output.say(f"{'':<17} {'':>9}  {_coded(plan)}")
    paper = plan.nominal_in(CONVENTIONS["scalekv"])
    _line(output, "  as papers count", paper, "float32 keys, 16-bit values (ScaleKV's tables)")
    _line(output, "cache, peak", plan.peak_bytes, f"with scratch of up to {format_bytes(plan.scratch_bytes)}")
    _line(output, "activations", footprint.activation_bytes, "estimate, transformer")
    _line(output, "decoding", footprint.decoding_bytes, "estimate, after the cache is freed")
    _line(output, "in all", footprint.total_bytes, "estimate: weights + the larger phase")
    if question.memory is not None:
        largest = run.largest_batch(question.policy, question.memory)
        advice = f"images fit at once into {question.memory_text}" if largest else "not even one image fits"
        output.say(f"{'largest batch':<17} {largest:>9}  {advice}")
    if rows:
        output.say()
        _print_table(output, question, rows)


def _coded(plan: CachePlan) -> str:
    """From when on history is coded."""
    last = len(plan.geometry.schedule) - 1
    if plan.coded_from is None:
        return "everything fits, so that nothing is coded"
    return f"exact before segment {plan.coded_from} of {last}, at last {plan.codec}"


def _line(output: Output, name: str, size: int, remark: str) -> None:
    output.say(f"{name:<17} {format_bytes(size):>9}  {remark}")


def _print_table(output: Output, question: _Question, rows: list[dict[str, Any]]) -> None:
    columns = ["budget", "kept", "peak", "in all"]
    if question.memory is not None:
        columns.append(f"largest batch in {question.memory_text}")
    cells = []
    for row in rows:
        if "error" in row:
            cells.append([row["budget"], *["-"] * (len(columns) - 1)])
            continue
        sizes = [format_bytes(row[name]) for name in ("nominal_bytes", "peak_bytes", "total_bytes")]
        cells.append([row["budget"], *sizes, *([str(row["largest_batch"])] if question.memory is not None else [])])
    output.table(columns, cells)
    if any("error" in row for row in rows):
        output.say(f"- means: {next(row['error'] for row in rows if 'error' in row)}")
