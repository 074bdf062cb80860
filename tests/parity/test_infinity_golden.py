"""Float32 parity with recorded runs of the reference Infinity.

``SCALEKV_GOLDEN`` names a folder whose ``infinity/`` holds the cases to check instead of the bundled ones. Every case
there is checked against everything it recorded; a case that cannot be run fails.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from parity.golden import ConcatCache, beyond, gap, golden_folder, left_out, recorded
from parity.infinity_golden import Case, Run, case_folders, unit_files
from scalekv.cache import KVCache
from scalekv.models.infinity import schedules, text_attention
from scalekv.models.infinity.autoencoder import accumulate
from scalekv.models.infinity.rope import RopeTables, rope_tables, rotate
from scalekv.models.infinity.sampling import bits_to_codes, patchify, resize, sample_bits, unpatchify
from scalekv.planning import CacheGeometry, Schedule
from scalekv.policies import Full

LOGITS, STATES, LATENT, IMAGE = 1e-4, 5e-5, 1e-5, 1e-4

FOLDERS = case_folders()
KNOWN_ARRAYS = (
    r"logits_(raw|cfg)\.\d+|bits\.\d+|summed_codes|[kv]_cache|image_f16|image_crop_f32|image_u8_bgr_crop"
    r"|tf\.logits_(raw|cfg)\.\d+|tf\.summed_codes|bf16ca\.logits_raw\.\d+"
    r"|trace\.(text_normed|cond_BD|ca_kv|cond_gss|x_in\.scale\d+|block\d+\.scale\d+)"
    r"|enc\.(h|z|recon_crop_f32|bits\.\d+|var_input\.\d+)"
)
Note = Callable[[str], None]


def cases(prefix: str = "") -> pytest.MarkDecorator:
    """Run a test on every case that recorded arrays starting with ``prefix``."""
    chosen = [folder for folder in FOLDERS if not prefix or recorded(folder, prefix)]
    return pytest.mark.parametrize("folder", chosen, ids=lambda folder: folder.name)


def logit_gap(case: Case, run: Run, prefix: str = "") -> float:
    pairs = [
        (ours, case.outputs[f"{prefix}logits_{kind}.{scale}"])
        for kind, found in (("raw", run.raw), ("cfg", run.mixed))
        for scale, ours in enumerate(found)
    ]
    assert len(pairs) == 2 * len(case.schedule)
    return max(gap(ours, theirs, LOGITS) for ours, theirs in pairs)


def test_the_golden_folder_has_cases() -> None:
    folder = golden_folder("infinity")
    assert folder.is_dir() or left_out("infinity"), f"there is no folder {folder}"
    assert FOLDERS or left_out("infinity"), f"there are no Infinity cases in {folder}, nor in a folder infinity of it"
    assert unit_files(), "there are no recorded units"


@cases()
def test_every_recorded_array_is_checked(case: Case, note: Note) -> None:
    unknown = [name for name in case.outputs if not re.fullmatch(KNOWN_ARRAYS, name)]
    if said := beyond(case.folder, case.unknown_flags, unknown):
        note(said)


@cases()
def test_free_run_draws_the_recorded_bits(case: Case, note: Note) -> None:
    run = case.run(ConcatCache())
    wrong = [
        int((ours != theirs.view_as(ours)).sum())
        for ours, theirs in zip(run.result.bits, case.bits("bits"), strict=True)
    ]
    assert wrong == [0] * len(case.schedule)
    note(f"free run {sum(bits.numel() for bits in run.result.bits)} bits equal, logits {logit_gap(case, run):.1e}")


@cases()
def test_own_bits_forced(case: Case, note: Note) -> None:
    cache = ConcatCache()
    run = case.run(cache, case.bits("bits"))
    logits = logit_gap(case, run)
    layer = case.config["kv_layer"]
    states = [
        gap(kept, case.outputs[name], STATES)
        for name, kept in (("k_cache", cache.keys[layer]), ("v_cache", cache.values[layer]))
        if name in case.outputs
    ]
    latent = gap(run.result.codes, case.outputs["summed_codes"], LATENT)
    note(f"own bits: logits {logits:.1e}, keys and values {max(states, default=0):.1e}, codes {latent:.1e}")


@cases("tf.")
def test_random_bits_forced(case: Case, note: Note) -> None:
    run = case.run(ConcatCache(), case.bits("tf.bits"))
    latent = gap(run.result.codes, case.outputs["tf.summed_codes"], LATENT)
    note(f"random bits: logits {logit_gap(case, run, 'tf.'):.1e}, codes {latent:.1e}")


@cases()
def test_full_cache_is_exact(case: Case, note: Note) -> None:
    condition, config = case.condition(), case.transformer.config
    geometry = CacheGeometry(
        layers=config.depth,
        heads=config.num_heads,
        head_dim=case.transformer.head_dim,
        schedule=case.schedule,
        batch=condition.batch,
        guidance=condition.rows // condition.batch,
        element_bytes=4,
    )
    with KVCache(Full().plan(geometry), Full(), dtype=torch.float32) as cache:
        run = case.run(cache, case.bits("bits"))
    note(f"full cache: logits {logit_gap(case, run):.1e}")


@cases("trace.")
def test_traces(case: Case, note: Note) -> None:
    model, found = case.transformer, {}
    scales = sorted({int(name.split("scale")[1]) for name in case.outputs if re.fullmatch(r"trace\..*scale\d+", name)})
    hooks = [model.text_norm.register_forward_hook(lambda _m, _i, out: found.__setitem__("trace.text_normed", out))]
    passes = [0] * len(model.ordered_blocks)

    def keep(layer: int, inputs: tuple, out: Tensor) -> None:
        if layer == 0:
            found[f"trace.x_in.scale{passes[layer]}"] = inputs[0]
        found[f"trace.block{layer}.scale{passes[layer]}"] = out
        passes[layer] += 1

    for layer, block in enumerate(model.ordered_blocks):
        hooks.append(block.register_forward_hook(lambda _m, inputs, out, layer=layer: keep(layer, inputs, out)))
    run = case.run(ConcatCache(), case.bits("bits"))
    for hook in hooks:
        hook.remove()
    text = {"cond_BD": run.condition.pooled, "ca_kv": run.condition.tokens, "cond_gss": run.condition.modulation}
    found |= {f"trace.{name}": value for name, value in text.items()}
    names = [name for name in case.outputs if name.startswith("trace.")]
    largest = max(gap(found[name], case.outputs[name], STATES) for name in names)
    note(f"{len(names)} traces at scales {scales} {largest:.1e}")


@cases("image_")
def test_final_image(case: Case, note: Note) -> None:
    with torch.no_grad():
        image = case.autoencoder.decode(case.outputs["summed_codes"])
    assert list(image.shape[-2:]) == case.config["image_size"]
    top, left = case.config["image_crop_yx"]
    said = []
    if "image_crop_f32" in case.outputs:
        crop = case.outputs["image_crop_f32"]
        window = (..., slice(top, top + crop.shape[-2]), slice(left, left + crop.shape[-1]))
        said.append(f"{gap(image[window], crop, IMAGE):.1e}")
    if "image_f16" in case.outputs:
        gap(image, case.outputs["image_f16"], IMAGE + 2**-11)
    if "image_u8_bgr_crop" in case.outputs:
        recorded_bytes = case.outputs["image_u8_bgr_crop"].flip(-1).int()
        height, width = recorded_bytes.shape[1:3]
        levels = ((image + 1) / 2).permute(0, 2, 3, 1)[:, top : top + height, left : left + width] * 255
        differs = levels.int() != recorded_bytes
        assert ((levels[differs] - levels[differs].round()).abs() < 0.02).all()
        assert ((levels.int() - recorded_bytes).abs() <= 1).all()
        said.append(f"{int(differs.sum())} bytes on a step")
    note(f"image {', '.join(said)}")


@cases("enc.")
def test_encoder(case: Case, note: Note) -> None:
    recorded_bits = [case.outputs[f"enc.bits.{scale}"] for scale in range(len(case.grids))]
    model, image = case.autoencoder, case.outputs["image_f16"].float()
    with torch.no_grad():
        latent = gap(model.encode(image), case.outputs["enc.h"], STATES)
        encoded = model.encode_to_bits(image, case.grids)
        wrong = sum(
            int((ours != theirs.view_as(ours)).sum()) for ours, theirs in zip(encoded.bits, recorded_bits, strict=True)
        )
        assert wrong <= 8, "more than a few signs at zero differ"
        sums = list(accumulate([bits[:, 0] for bits in recorded_bits]))
        gap(sums[-1], case.outputs["enc.z"], LATENT)
        assert wrong or torch.equal(encoded.latent, sums[-1])
        for scale, grid in enumerate(case.grids[1:]):
            shrunk = torch.nn.functional.interpolate(sums[scale], size=grid, mode="area")
            gap(shrunk[:, :, None], case.outputs[f"enc.var_input.{scale}"], LATENT)
        crop = case.outputs["enc.recon_crop_f32"]
        top, left = case.config["image_crop_yx"]
        window = (..., slice(top, top + crop.shape[-2]), slice(left, left + crop.shape[-1]))
        decoded = gap(model.decode_bits([bits[:, 0] for bits in recorded_bits])[window], crop, IMAGE)
    note(f"encoder: latent {latent:.1e}, {wrong} bits differ, reconstruction {decoded:.1e}")


@cases("bf16ca.")
def test_published_rounding_of_text_attention(case: Case, note: Note, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = text_attention.attend_text

    def rounded(query: Tensor, key: Tensor, value: Tensor, real: Tensor | None) -> Tensor:
        return exact(*(state.bfloat16().float() for state in (query, key, value)), real).bfloat16().float()

    monkeypatch.setattr(text_attention, "attend_text", rounded)
    run = case.run(ConcatCache(), case.bits("bits"))
    largest = 0.0
    for scale, raw in enumerate(run.raw):
        # A value on the edge of two bfloat16 numbers may round either way; not rounding at all gives 4e-3.
        largest = max(largest, gap(raw, case.outputs[f"bf16ca.logits_raw.{scale}"], 1.5e-3))
    note(f"bfloat16 text attention {largest:.1e}")


units = pytest.mark.parametrize("units", unit_files(), ids=lambda path: path.parent.parent.name)


@units
def test_rope_units(units: Path) -> None:
    arrays = load_file(units)
    names = [name for name in arrays if name.startswith("rope.")]
    assert names
    for name in names:
        _, mode, template = name.split(".", 2)
        schedule = schedules.schedule_for(template, "0.06M")
        tables = rope_tables(schedule, 16, schedules.extent(template), int(mode.removeprefix("mode")))
        gap(torch.stack((tables.cos, tables.sin)), arrays[name], 1e-6)


@units
def test_rotation_units(units: Path) -> None:
    arrays = load_file(units)
    schedule = schedules.schedule_for("1.000", "0.06M")
    tables: RopeTables = rope_tables(schedule, 16, schedules.extent("1.000"), 2)
    for name in "qk":
        turned = rotate(arrays[f"rotate.{name}_in"], *tables.at(schedule[2]))
        gap(turned, arrays[f"rotate.{name}_out"], 1e-6)


@units
def test_sampler_units(units: Path) -> None:
    arrays = load_file(units)
    names = [name for name in arrays if re.fullmatch(r"sampler\.k\d+\.p[\d.]+\.seed\d+", name)]
    assert names
    for name in names:
        top_k, top_p, seed = re.fullmatch(r"sampler\.k(\d+)\.p([\d.]+)\.seed(\d+)", name).groups()
        generator = torch.Generator().manual_seed(int(seed))
        drawn = sample_bits(arrays["sampler.logits"].flatten(1)[:, None], int(top_k), float(top_p), generator)
        assert torch.equal(drawn[:, 0], arrays[name]), name
        assert torch.equal(torch.rand(1, generator=generator), arrays[f"{name}.next"]), f"{name} consumed otherwise"


@units
def test_code_units(units: Path) -> None:
    arrays = load_file(units)
    codes = bits_to_codes(arrays["codes.bits"][:, 0])
    gap(codes, arrays["codes.codes"][:, :, 0], 1e-6)
    grown = resize(codes, (8, 10))
    gap(grown, arrays["codes.up"][:, :, 0], 1e-6)
    gap(resize(grown, (4, 7)), arrays["codes.down"][:, :, 0], 1e-6)
    tokens = arrays["codes.unshuffle"].flatten(2).transpose(1, 2)
    gap(patchify(grown, 2), tokens, 1e-6)
    assert torch.equal(unpatchify(arrays["patchify.token_bits"], 2), arrays["patchify.latent_bits"])


def test_a_schedule_off_the_table_has_positions() -> None:
    schedule = Schedule.from_shapes([(1, 1), (3, 2), (7, 5)])
    for mode in (0, 1, 2):
        tables = rope_tables(schedule, 16, (7, 5), mode)
        assert tables.cos.shape == (42, 8)
