"""Float32 parity of the parts of VAR by themselves: sampler, decoder, encoder; see ``test_var_golden``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from parity.golden import gap
from parity.var_golden import Case, cases, picture, published_stream
from scalekv.models.var.codebook import phi_indices, shrink
from scalekv.models.var.sampling import (
    draw_classes,
    filter_logits,
    guidance_ramp,
    gumbel_softmax,
    sample_tokens,
    smooth_weights,
)
from scalekv.planning import Schedule

LATENT, IMAGE, ENCODED = 2e-6, 1e-5, 2e-5

Note = Callable[[str], None]


@cases("ar.noise")
def test_sampler_alone(case: Case, note: Note) -> None:
    sample, said = case.config["sample"], []
    generator = torch.Generator().manual_seed(sample["seed"])
    for scale, theirs in enumerate(case.tokens("ar")):
        logits = case.outputs[f"ar.logits_cfg.{scale}"]
        filtered = filter_logits(logits, sample.get("top_k", 0), sample.get("top_p", 0.0))
        race = filtered.softmax(-1) / case.outputs[f"ar.noise.{scale}"]
        assert torch.equal(race.argmax(-1), theirs)
        if torch.backends.mkl.is_available():
            assert torch.equal(sample_tokens(filtered, generator), theirs)
            said = [" and stream"]
    note(f"sampler{''.join(said)} equal")


@cases("smooth.gumbel_noise")
def test_smooth_sampler_alone(case: Case, note: Note) -> None:
    sample, codebook = case.config["sample"], case.codebook
    generator = torch.Generator().manual_seed(sample["seed"])
    schedule, total, worst = case.transformer.schedule, None, 0.0
    ramp = guidance_ramp(1.0, schedule)
    for step, grid in enumerate(case.grids):
        logits = case.outputs[f"smooth.logits_cfg.{step}"]
        filtered = filter_logits(logits, sample.get("top_k", 0), sample.get("top_p", 0.0))
        race = filtered.softmax(-1) / case.outputs[f"smooth.race_noise.{step}"]
        assert torch.equal(race.argmax(-1), case.outputs[f"smooth.idx_drawn_unused.{step}"])
        gain, heat = case.config["logit_gain_per_scale"][step], case.config["tau_per_scale"][step]
        weights = gumbel_softmax(filtered * gain, heat, case.outputs[f"smooth.gumbel_noise.{step}"])
        if torch.backends.mkl.is_available():
            sample_tokens(filtered, generator)
            gap(smooth_weights(filtered, ramp[step], generator), weights, 1e-6)
        added = codebook.residual(codebook.mixture(weights.unflatten(1, grid)), step, len(schedule), case.grids[-1])
        total = added if total is None else total + added
        worst = max(worst, gap(total, case.outputs[f"smooth.f_hat.{step}"], LATENT))
    note(f"smooth sampler {worst:.1e}")


@published_stream
@cases(key="label_none_draw")
def test_random_classes(case: Case) -> None:
    drawn, classes = case.config["label_none_draw"], case.settings("var", "weights.safetensors")["num_classes"]
    generator = torch.Generator().manual_seed(drawn["seed"])
    assert draw_classes(drawn["batch"], classes, generator) == drawn["labels"]


@cases("dec.img_from_idx")
def test_decoding_tokens(case: Case, note: Note) -> None:
    tokens = [one.unflatten(1, grid) for one, grid in zip(case.tokens("ar"), case.grids, strict=True)]
    with torch.no_grad():
        image = gap(case.autoencoder.decode_tokens(tokens), case.outputs["dec.img_from_idx"], IMAGE)
    *_, latent = case.codebook.accumulate(tokens, len(tokens), case.grids[-1])
    final = gap(picture(case, latent), case.outputs["ar.image"], IMAGE)
    note(f"image {max(image, final):.1e}")


@cases("dec.image")
def test_decoder_stages(case: Case, note: Note) -> None:
    for name in (name for name in case.outputs if name.startswith("probe.")):
        gap(case.recipe[name.removeprefix("probe.")].flatten()[:8], case.outputs[name], 0)
    decoder, found = case.autoencoder.decoder, {}
    stages = {"conv_in": decoder.conv_in, "mid": decoder.mid}
    stages |= {f"up.{level}": module for level, module in enumerate(decoder.up)}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: found.__setitem__(f"dec.stage.{name}", out[0, :4]))
        for name, module in stages.items()
    ]
    with torch.no_grad():
        image = gap(case.autoencoder.decode(case.recipe["input.f_hat"]), case.outputs["dec.image"], IMAGE)
    for hook in hooks:
        hook.remove()
    names = [name for name in case.outputs if name.startswith("dec.stage.")]
    # Stages are larger than pictures, so their tolerance is relative.
    largest = max(
        gap(found[name] / (bound := case.outputs[name].abs().max()), case.outputs[name] / bound, IMAGE)
        for name in names
    )
    note(f"decoder: image {image:.1e}, {len(names)} stages {largest:.1e}")


@cases("enc.")
def test_encoder(case: Case, note: Note) -> None:
    model = case.autoencoder
    image = case.recipe["input.image"] if case.recipe else case.outputs["enc.image"]
    with torch.no_grad():
        latent = gap(model.encode(image), case.outputs["enc.f"], ENCODED)
        encoded = model.encode_to_tokens(image, case.grids)
    for scale, tokens in enumerate(encoded.tokens):
        assert torch.equal(tokens.flatten(1), case.outputs[f"enc.idx.{scale}"])
    coded = gap(encoded.latent, case.outputs["enc.f_hat"], ENCODED)
    *_, summed = case.codebook.accumulate(encoded.tokens, len(case.grids), case.grids[-1])
    assert torch.equal(summed, encoded.latent)
    assert shrink(summed, case.grids[-1]) is summed
    note(f"encoder: latent {latent:.1e}, tokens equal, coded {coded:.1e}")


@cases(key="combos")
def test_filters_and_draws(case: Case, note: Note) -> None:
    for combo in case.config["combos"]:
        prefix, logits = combo["n"], case.outputs[combo["source"]]
        filtered = filter_logits(logits, combo["top_k"], combo["top_p"])
        assert torch.equal(filtered.isfinite(), case.outputs[f"{prefix}.kept"]), combo
        assert filtered.isfinite().sum(-1).flatten().tolist() == combo["kept_counts"]
        race = filtered.softmax(-1) / case.outputs[f"{prefix}.noise"]
        assert torch.equal(race.argmax(-1), case.outputs[f"{prefix}.idx"]), combo
        if torch.backends.mkl.is_available():
            drawn = sample_tokens(filtered, torch.Generator().manual_seed(combo["seed"]))
            assert torch.equal(drawn, case.outputs[f"{prefix}.idx"]), combo
    said = f"{len(case.config['combos'])} filters and draws equal"
    if "gumbel" in case.config:
        settings = case.config["gumbel"]
        out = gumbel_softmax(case.outputs[settings["source"]], settings["tau"], case.outputs["gumbel.noise"])
        said += f", gumbel {gap(out, case.outputs['gumbel.out'], 1e-6):.1e}"
    note(said)


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        (10, "0011122333"),
        (5, "01223"),
        (6, "001233"),
        (7, "0012233"),
        (8, "00112233"),
        (9, "001122233"),
        (14, "00011112222333"),
    ],
)
def test_ties_between_smoothing_convolutions(segments: int, expected: str) -> None:
    assert "".join(map(str, phi_indices(4, segments))) == expected
    assert len(Schedule.from_sides(range(1, segments + 1))) == len(expected)
