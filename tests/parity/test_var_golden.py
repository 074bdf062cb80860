"""Float32 parity with recorded runs of the reference VAR.

``SCALEKV_GOLDEN`` names the folder of the cases to check instead of the bundled ones: one with ``var/`` in it, one of
cases, or a case. Every case is checked against everything it recorded; a case that cannot be run fails, and what a case
holds beyond what is known here is said in the summary.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from parity.golden import ConcatCache, beyond, gap, golden_folder, left_out
from parity.var_golden import Case, Run, case_folders, cases, key_lists, picture, published_stream
from scalekv.cache import KVCache
from scalekv.models.var.codebook import phi_indices
from scalekv.planning import CacheGeometry
from scalekv.policies import Full

RAW, GUIDED, HIDDEN, CACHE, LATENT, IMAGE = 3e-5, 5e-5, 5e-5, 3e-5, 2e-6, 1e-5
SMOOTH = 5e-3
"""Of a free smooth run only: a soft choice multiplies the error of logits by up to 2 / 0.0135, step after step."""

FOLDERS = case_folders()
KNOWN_ARRAYS = (
    r"ar\.(x_in|[kv]_cache|image|(logits_raw|logits_cfg|noise|idx|f_hat|next_map)\.\d+)"
    r"|smooth\.(image|(logits_cfg|race_noise|idx_drawn_unused|gumbel_noise|f_hat|next_map)\.\d+)"
    r"|dec\.(img_from_idx|image|stage\.(conv_in|mid|up\.\d+))"
    r"|tf\.(idx|input|logits|hidden_row0_(first|last)_block)|enc\.(image|f|f_hat|idx\.\d+)"
    r"|probe\..+|\d+\.(kept|noise|idx)|logits(_ties)?|gumbel\.(noise|out)"
)
Note = Callable[[str], None]


def largest_gap(case: Case, name: str, ours: list[Tensor], limit: float) -> float:
    """Over all scales; every recorded scale is compared."""
    names = [one for one in case.outputs if re.fullmatch(rf"{re.escape(name)}\.\d+", one)]
    assert len(names) == len(ours)
    return max(gap(found, case.outputs[f"{name}.{scale}"], limit) for scale, found in enumerate(ours))


def maps_of(case: Case, run: Run) -> list[Tensor]:
    """What segments after the first saw, as maps."""
    return [seen.transpose(1, 2).unflatten(2, grid) for seen, grid in zip(run.maps, case.grids[1:], strict=True)]


def latent_gaps(case: Case, run: Run, kind: str, limit: float = LATENT) -> float:
    return max(
        largest_gap(case, f"{kind}.f_hat", run.latents, limit),
        largest_gap(case, f"{kind}.next_map", maps_of(case, run), limit),
    )


def test_the_golden_folder_has_cases() -> None:
    folder = golden_folder("var")
    assert folder.is_dir() or left_out("var"), f"there is no folder {folder}"
    assert FOLDERS or left_out("var"), f"there are no VAR cases in {folder}, nor in a folder var of it"
    assert key_lists(), "there are no lists of official keys"


@cases()
def test_every_recorded_array_is_checked(case: Case, note: Note) -> None:
    unknown = [name for name in case.outputs if not re.fullmatch(KNOWN_ARRAYS, name)]
    assert case.outputs
    said = beyond(case.folder, case.unknown_flags, unknown)
    note(f"{len(case.outputs) - len(unknown)} arrays{said and f'; {said}'}")


@cases(key="begin_ends")
def test_the_schedule_is_the_recorded_one(case: Case) -> None:
    schedule = case.transformer.schedule
    ends = [[schedule.start(step), schedule.start(step) + segment.tokens] for step, segment in enumerate(schedule)]
    assert ends == case.config["begin_ends"]
    assert schedule.total_tokens == case.config.get("seq_len", schedule.total_tokens)
    scales = case.weights("weights.safetensors").get("lvl_1L")
    if scales is not None:
        assert torch.bincount(scales[0]).tolist() == list(schedule.tokens)
    sizes = case.settings("vae", "vae.safetensors")
    if "phi_index_per_scale" in sizes:
        phis = sizes["share_quant_resi"] or len(schedule)
        assert list(phi_indices(phis, len(schedule))) == sizes["phi_index_per_scale"]
    assert case.autoencoder.patch_size == sizes.get("downsample", case.autoencoder.patch_size)


@published_stream
@cases("ar.")
def test_free_run_draws_the_recorded_tokens(case: Case, note: Note) -> None:
    run = case.run(ConcatCache())
    wrong = [
        int((ours.flatten(1) != theirs).sum())
        for ours, theirs in zip(run.result.tokens, case.tokens("ar"), strict=True)
    ]
    assert wrong == [0] * len(case.sides)
    logits = largest_gap(case, "ar.logits_raw", run.raw, RAW)
    image = gap(picture(case, run.result.latent), case.outputs["ar.image"], IMAGE)
    note(
        f"free run {sum(one.numel() for one in run.result.tokens)} tokens equal, logits {logits:.1e}, image {image:.1e}"
    )


@published_stream
@cases("smooth.")
def test_smooth_run(case: Case, note: Note) -> None:
    run = case.run(ConcatCache())
    for scale, drawn in enumerate(run.result.tokens):
        assert torch.equal(drawn.flatten(1), case.outputs[f"smooth.idx_drawn_unused.{scale}"])
    logits = largest_gap(case, "smooth.logits_cfg", run.guided, SMOOTH)
    latent = latent_gaps(case, run, "smooth", SMOOTH)
    image = gap(picture(case, run.result.latent), case.outputs["smooth.image"], SMOOTH)
    note(f"smooth run: logits {logits:.1e}, latents {latent:.1e}, image {image:.1e}")


@cases("smooth.")
def test_smooth_latents_forced(case: Case, note: Note) -> None:
    latents = [case.outputs[f"smooth.f_hat.{scale}"] for scale in range(len(case.sides))]
    run = case.run(ConcatCache(), latents=latents)
    logits = largest_gap(case, "smooth.logits_cfg", run.guided, GUIDED)
    maps = largest_gap(case, "smooth.next_map", maps_of(case, run), LATENT)
    image = gap(picture(case, latents[-1]), case.outputs["smooth.image"], IMAGE)
    note(f"smooth latents forced: logits {logits:.1e}, maps {maps:.1e}, image {image:.1e}")


@cases("ar.")
def test_own_tokens_forced(case: Case, note: Note) -> None:
    cache, sample = ConcatCache(), case.config["sample"]
    run = case.run(cache, case.tokens("ar"))
    raw = largest_gap(case, "ar.logits_raw", run.raw, RAW)
    guided = largest_gap(case, "ar.logits_cfg", run.guided, GUIDED)
    latent = latent_gaps(case, run, "ar")
    rows, layer = sample.get("kv_rows"), sample.get("kv_layer")
    found = {"ar.x_in": (torch.cat(run.inputs, dim=1), HIDDEN)}
    if layer is not None:
        found |= {"ar.k_cache": (cache.keys[layer], CACHE), "ar.v_cache": (cache.values[layer], CACHE)}
    names = [name for name in ("ar.x_in", "ar.k_cache", "ar.v_cache") if name in case.outputs]
    states = max((gap(found[name][0][rows], case.outputs[name], found[name][1]) for name in names), default=0)
    note(f"own tokens: raw {raw:.1e}, guided {guided:.1e}, latents {latent:.1e}, inputs, keys and values {states:.1e}")


@cases("ar.")
def test_full_cache_is_exact(case: Case, note: Note) -> None:
    config = case.transformer.config
    geometry = CacheGeometry(
        layers=config.depth,
        heads=config.num_heads,
        head_dim=case.transformer.head_dim,
        schedule=case.transformer.schedule,
        batch=case.config["sample"]["batch"],
        guidance=2,
        element_bytes=4,
    )
    with KVCache(Full().plan(geometry), Full(), dtype=torch.float32) as cache:
        run = case.run(cache, case.tokens("ar"))
    note(f"full cache: {largest_gap(case, 'ar.logits_raw', run.raw, RAW):.1e}")


@cases("tf.")
def test_teacher_forced(case: Case, note: Note) -> None:
    labels = case.config["teacher_forced"]["labels"]
    run = case.run(ConcatCache(), case.tokens("tf"), labels, guided=False)
    row = case.config["teacher_forced"].get("hidden_row", 0)
    logits = gap(torch.cat(run.raw, dim=1), case.outputs["tf.logits"], RAW)
    inputs = gap(torch.cat(run.maps, dim=1), case.outputs["tf.input"], LATENT)
    found = {"tf.hidden_row0_first_block": run.first, "tf.hidden_row0_last_block": run.last}
    names = [name for name in found if name in case.outputs]
    hidden = max((gap(torch.cat(found[name], dim=1)[row], case.outputs[name], HIDDEN) for name in names), default=0)
    note(f"teacher-forced: logits {logits:.1e}, input {inputs:.1e}, hidden {hidden:.1e}")
