"""Reading official VAR files: strictly, with everything that weights tell inferred from them."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.checkpoint_files import autoencoder_state as infinity_vae
from models.checkpoint_files import same, write_pth
from models.checkpoint_files import transformer_state as infinity_transformer
from models.var_tiny import FLAGS, SIDES, copies, tiny_autoencoder, transformer_state
from parity.var_golden import key_lists
from scalekv.errors import CheckpointError
from scalekv.models.assembly import build, compare
from scalekv.models.catalog import matching_models, model_spec
from scalekv.models.infinity import checkpoint as infinity
from scalekv.models.inspection import inspect_checkpoint
from scalekv.models.kinds import VAR_TRANSFORMER, kind_of
from scalekv.models.var import VARTransformer, VQAutoencoder
from scalekv.models.var.checkpoint import guess_model, load_autoencoder, load_transformer
from scalekv.models.var.layout import TRAINING_KEYS, autoencoder_config, patch_nums_of, transformer_config
from scalekv.models.weights import WeightTable

TOLD = ("shared_aln", "attn_l2_norm", "mlp_ratio")

official = pytest.mark.parametrize("path", key_lists(), ids=lambda path: path.stem)


def listed(path: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    content = json.loads(path.read_text())
    return {name: (getattr(torch, dtype), tuple(shape)) for name, (dtype, shape) in content.items()}


def thin(path: Path) -> dict[str, Tensor]:
    """Tensors of these names and shapes that take no memory; the scales of tokens are real ones."""
    tensors = {name: torch.zeros(1, dtype=dtype).expand(shape) for name, (dtype, shape) in listed(path).items()}
    if "lvl_1L" in tensors:
        sides = model_spec(path.stem.replace("_", "-")).sides
        tensors["lvl_1L"] = torch.cat([torch.full((side * side,), step) for step, side in enumerate(sides)])[None]
    return tensors


@official
def test_official_keys_are_exactly_ours(path: Path) -> None:
    shapes = {name: shape for name, (_, shape) in listed(path).items() if name not in TRAINING_KEYS}
    if kind_of(shapes) == VAR_TRANSFORMER:
        table = WeightTable.of_tensors(str(path), thin(path))
        config = transformer_config(shapes, str(path), patch_nums_of(table))
        network = build(VARTransformer, config, str(path))
        spec = guess_model(config)
        assert spec is not None
        assert spec.name == path.stem.replace("_", "-")
        assert sum(one.numel() for one in network.parameters()) == spec.parameters
        assert (config["depth"], config["shared_aln"]) == (spec.layers, spec.name == "var-d36")
    else:
        network = build(VQAutoencoder, autoencoder_config(shapes, str(path)), str(path))
        defaults = build(VQAutoencoder, {}, "defaults").config
        assert all(network.config[name] == value for name, value in defaults.items() if isinstance(value, (int, float)))
        assert tuple(network.config.channel_multipliers) == defaults.channel_multipliers
        assert sum(one.numel() for one in network.parameters()) == model_spec("var-d16").autoencoder.parameters
    ours = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    compare(ours, shapes, str(path))
    assert list(ours) == list(shapes), "the order of the keys differs"


@official
def test_official_files_are_recognised(path: Path, tmp_path: Path) -> None:
    info = inspect_checkpoint(write_pth(tmp_path / "file.pth", thin(path)))
    if path.stem.startswith("var"):
        assert info.models == (path.stem.replace("_", "-"),)
        assert info.parameters == model_spec(info.models[0]).parameters
        assert info.autoencoders == ("vae_ch160v4096z32.pth",)
    else:
        assert info.models == ("var-d16", "var-d20", "var-d24", "var-d30", "var-d36")
        assert info.kind == "var vae"


def test_the_lists_have_the_published_sizes() -> None:
    sizes = {
        path.stem: sum(prod(shape) * dtype.itemsize for dtype, shape in listed(path).values()) for path in key_lists()
    }
    assert sizes["var_d30"] == 8_042_166_864
    assert sizes["var_d36"] == 9_435_995_712


@pytest.mark.parametrize("form", ["pth", "safetensors", "trainer", "without tables"])
@pytest.mark.parametrize("flags", FLAGS[:4], ids=str)
def test_every_form(form: str, flags: dict[str, Any], tmp_path: Path) -> None:
    state, path = transformer_state(**flags), tmp_path / "model.pth"
    options: dict[str, Any] = {} if flags.get("attn_l2_norm", True) else {"num_heads": 4}
    if form == "pth":
        write_pth(path, state)
    elif form == "safetensors":
        save_file(state, path := tmp_path / "model.safetensors")
    elif form == "trainer":
        vae = copies(tiny_autoencoder())
        write_pth(path, {"epoch": 1, "trainer": {"var_wo_ddp": state, "vae_local": vae}, "args": {"depth": 3}})
        assert same(load_autoencoder(path), vae)
    else:
        write_pth(path, {name: tensor for name, tensor in state.items() if name not in TRAINING_KEYS})
        options["patch_nums"] = SIDES
    network = load_transformer(path, **options)
    assert same(network, state)
    assert not network.training
    assert tuple(network.config.patch_nums) == SIDES
    assert network.config.num_heads == 4
    for name, value in flags.items():
        assert network.config[name] == value


def test_only_blocks_change_dtype(tmp_path: Path) -> None:
    network = load_transformer(write_pth(tmp_path / "t.pth", transformer_state()), dtype=torch.bfloat16)
    found = {name.startswith("blocks."): tensor.dtype for name, tensor in network.state_dict().items()}
    assert found == {True: torch.bfloat16, False: torch.float32}


@pytest.mark.parametrize("sizes", [{}, {"shared_phis": 1}, {"shared_phis": 0}, {"quant_resi": 0.0}, {"num_scales": 7}])
def test_tokenizers(sizes: dict[str, Any], tmp_path: Path) -> None:
    state = copies(tiny_autoencoder(**sizes))
    network = load_autoencoder(write_pth(tmp_path / "v.pth", state))
    assert same(network, state)
    assert network.patch_size == 4
    for name, value in sizes.items():
        assert network.config[name] == value


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a key less": (lambda s: s.pop("blocks.1.attn.q_bias"), {}, r"lacks 1: blocks\.1\.attn\.q_bias"),
    "a key more": (lambda s: s.update(extra=torch.zeros(1)), {}, "holds 1 that do not belong: extra"),
    "scales of one block": (lambda s: s.pop("blocks.2.attn.scale_mul_1H11"), {}, r"lacks 1: blocks\.2\.attn\.scale"),
    "a wrong shape": (lambda s: s.update({"head.bias": torch.zeros(3)}), {}, r"head\.bias of .* has shape \(3,\)"),
    "disordered scales": (lambda s: s.update(lvl_1L=s["lvl_1L"].flip(1)), {}, "does not number the tokens"),
    "no squares": (lambda s: s.update(lvl_1L=s["lvl_1L"].clamp_max(1)), {}, "does not number the tokens"),
    "another number of tokens": (
        lambda s: s.update(pos_1LC=s["pos_1LC"][:, 1:]),
        {},
        "has 4 segments and 38 tokens",
    ),
    "another mask": (
        lambda s: s.update(attn_bias_for_masking=torch.zeros(1, 1, 2, 2)),
        {},
        r"attn_bias_for_masking of .* has shape \(1, 1, 2, 2\)",
    ),
    "another schedule": (lambda s: None, {"patch_nums": (1, 2, 3, 4)}, "segments of 1, 2, 3, 4 tokens"),
    "no schedule": (lambda s: s.pop("lvl_1L"), {}, "give patch_nums"),
    "other heads": (lambda s: None, {"num_heads": 8}, "has 4 heads"),
    "another model": (lambda s: None, {"model": "var-d16"}, "is not var-d16: it has layers 3, expected 16"),
    "integers": (
        lambda s: s.update({"head.bias": torch.zeros(24, dtype=torch.int8)}),
        {},
        "head.bias of .* is stored as int8",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_transformers(kind: str, tmp_path: Path) -> None:
    spoil, options, message = BAD[kind]
    state = transformer_state()
    spoil(state)
    with pytest.raises(CheckpointError, match=message):
        load_transformer(write_pth(tmp_path / "t.pth", state), **options)


def test_a_published_name_must_be_that_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not var-d30: it has layers 3"):
        load_transformer(write_pth(tmp_path / "var_d30.pth", transformer_state()))


def test_heads_of_plain_attention_must_be_told_or_divide(tmp_path: Path) -> None:
    state = transformer_state(attn_l2_norm=False, width=48, num_heads=3)
    path = write_pth(tmp_path / "t.pth", state)
    with pytest.raises(CheckpointError, match="Cannot tell the heads"):
        load_transformer(path)
    assert load_transformer(path, num_heads=3).head_dim == 16


def test_files_of_another_kind(tmp_path: Path) -> None:
    paths = {
        "var": write_pth(tmp_path / "a.pth", transformer_state()),
        "var vae": write_pth(tmp_path / "b.pth", copies(tiny_autoencoder())),
        "infinity": write_pth(tmp_path / "c.pth", infinity_transformer()),
        "infinity vae": write_pth(tmp_path / "d.pth", infinity_vae()),
    }
    for load, path, message in (
        (load_transformer, paths["var vae"], "is a var vae, expected a var transformer; load it as the VAE"),
        (load_autoencoder, paths["var"], "is a var transformer, expected a var vae; load it as the transformer"),
        (load_transformer, paths["infinity"], "is an infinity transformer, expected a var transformer; use the pipe"),
        (load_autoencoder, paths["infinity vae"], "is an infinity vae, expected a var vae; use the pipeline of inf"),
        (infinity.load_transformer, paths["var"], "is a var transformer, expected an infinity transformer; use the"),
        (infinity.load_autoencoder, paths["var vae"], "is a var vae, expected an infinity vae; use the pipeline of"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load(path)


def test_old_files_without_head_scales_are_plain(tmp_path: Path) -> None:
    (path,) = (path for path in key_lists() if path.stem == "var_d16" and "data" in path.parts)
    old = {name: tensor for name, tensor in thin(path).items() if "scale_mul" not in name}
    info = inspect_checkpoint(write_pth(tmp_path / "var_d16.pth", old))
    assert info.config is not None
    assert (info.config["attn_l2_norm"], info.config["num_heads"]) == (False, 16)
    assert info.models == ("var-d16",)


def test_models_of_one_family_are_told_apart() -> None:
    assert [spec.name for spec in matching_models("var", 30, 30, 1920, 12)] == ["var-d30"]
