"""Reading official files: every published form gives the same network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoint_files import (
    autoencoder_state,
    original_spelling,
    same,
    transformer_state,
    write_pth,
    write_shards,
)
from models.infinity_tiny import FLAGS
from scalekv.models.infinity.checkpoint import load_autoencoder, load_transformer
from scalekv.models.infinity.transformer import unconditional_rows

GOLDEN = Path(__file__).parent.parent / "data" / "golden" / "infinity"
UNTOLD = ("tau", "rope_mode", "level_embedding_per_chunk", "rand_uncond")
"""Flags that leave no trace in weights."""


@pytest.mark.parametrize("form", ["pth", "old pth", "safetensors", "shards", "one-file folder", "trainer", "ema"])
def test_every_published_form(form: str, tmp_path: Path) -> None:
    state = transformer_state()
    other = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    path = tmp_path / "model.pth"
    if form == "pth":
        write_pth(path, state)
    elif form == "old pth":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif form == "safetensors":
        save_file(state, path := tmp_path / "model.safetensors")
    elif form == "shards":
        write_shards(path := tmp_path / "weights", state)
    elif form == "one-file folder":
        (path := tmp_path / "weights").mkdir()
        save_file(state, path / "model.safetensors")
    elif form == "trainer":
        write_pth(path, {"epoch": 3, "trainer": {"gpt_fsdp": state, "gpt_ema_fsdp": other}})
    else:
        write_pth(path, {"trainer": {"gpt_fsdp": other, "gpt_ema_fsdp": state}, "args": {"lr": 1e-4}})
    network = load_transformer(path, ema=form == "ema")
    assert same(network, state)
    assert not network.training
    assert not any(tensor.is_meta for tensor in network.state_dict().values())


@pytest.mark.parametrize("flags", [one for one in FLAGS if one.get("cos_attn", True)], ids=str)
def test_the_configuration_is_read_off_the_weights(flags: dict[str, Any], tmp_path: Path) -> None:
    state = transformer_state(**flags)
    state.pop("lvl_1L")
    told = {name: value for name, value in flags.items() if name not in UNTOLD}
    options = {name: flags[name] for name in ("rope_mode", "level_embedding_per_chunk") if name in flags}
    network = load_transformer(write_pth(tmp_path / "t.pth", state), codebook_bits=6, **options)
    assert same(network, state)
    for name, value in {"depth": 4, "width": 64, "num_heads": 4, "text_maxlen": 12, **told, **options}.items():
        if name == "cross_attn_layer_scale":
            assert (network.config[name] >= 0) == (value >= 0)
        else:
            assert network.config[name] == value, name


@pytest.mark.parametrize("case", ["plain_square", "plain_flags", "patchify_batch2"])
def test_recorded_weights_load_by_themselves(case: str) -> None:
    state = load_file(GOLDEN / case / "weights.safetensors")
    vae = load_autoencoder(GOLDEN / case / "vae.safetensors", dtype=torch.float32)
    network = load_transformer(GOLDEN / case / "weights.safetensors", codebook_bits=vae.config.codebook_bits)
    assert same(network, state)
    assert network.config.patchify == case.startswith("patchify")
    assert next(vae.parameters()).dtype == torch.float32


def test_patchify_follows_the_tokenizer_or_the_argument(tmp_path: Path) -> None:
    path = write_pth(tmp_path / "t.pth", transformer_state(patchify=True))
    assert load_transformer(path, codebook_bits=6).config.patchify
    assert not load_transformer(path, codebook_bits=24).config.patchify
    assert load_transformer(path, patchify=True).config.codebook_bits == 6
    assert load_transformer(path).config.codebook_bits == 24


def test_temperatures_of_the_fused_kernel_are_reshaped(tmp_path: Path) -> None:
    state = transformer_state()
    fused = {
        name: tensor.reshape(1, 1, -1, 1) if name.endswith("scale_mul_1H11") else tensor
        for name, tensor in state.items()
    }
    assert same(load_transformer(write_pth(tmp_path / "t.pth", fused)), state)


@pytest.mark.parametrize(("rows", "wanted"), [(8, 12), (16, 12)])
def test_unconditional_rows_are_cut_or_filled(rows: int, wanted: int, tmp_path: Path) -> None:
    state = transformer_state(text_maxlen=rows)
    network = load_transformer(write_pth(tmp_path / "t.pth", state), text_maxlen=wanted)
    assert network.config.text_maxlen == wanted
    known = min(rows, wanted)
    assert torch.equal(network.cfg_uncond[:known], state["cfg_uncond"][:known])
    assert torch.equal(network.cfg_uncond[known:], unconditional_rows(wanted, 128)[known:])


def test_only_blocks_change_dtype(tmp_path: Path) -> None:
    network = load_transformer(write_pth(tmp_path / "t.pth", transformer_state()), dtype=torch.bfloat16)
    found = {name.startswith("block_chunks."): tensor.dtype for name, tensor in network.state_dict().items()}
    assert found == {True: torch.bfloat16, False: torch.float32}
    assert network.attention_dtype == torch.bfloat16


@pytest.mark.parametrize("spelling", ["published", "original"])
@pytest.mark.parametrize("nesting", ["training checkpoint", "bare"])
def test_both_spellings_of_a_tokenizer(spelling: str, nesting: str, tmp_path: Path) -> None:
    state = autoencoder_state()
    spelled = {original_spelling(name): tensor for name, tensor in state.items()} if spelling == "original" else state
    assert (spelled.keys() == state.keys()) == (spelling == "published")
    content = {"vae": spelled, "ema": {}, "discriminator": {"weight": torch.zeros(3)}, "steps": 5}
    vae = load_autoencoder(write_pth(tmp_path / "v.pth", content if nesting != "bare" else spelled))
    assert same(vae, state)
    assert (vae.config.patch_size, vae.config.base_channels, vae.config.num_res_blocks) == (4, 24, 1)


def test_networks_do_not_depend_on_the_file_after_loading(tmp_path: Path) -> None:
    state = transformer_state()
    path = write_pth(tmp_path / "t.pth", state)
    network = load_transformer(path)
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    assert same(network, state)


MEMORY = """
import resource, sys, torch
from pathlib import Path
from scalekv.models.infinity.checkpoint import load_transformer
def anonymous():
    lines = Path('/proc/self/status').read_text().splitlines()
    return int(next(line for line in lines if line.startswith('RssAnon')).split()[1])
load_transformer(sys.argv[1])
before = anonymous()
seen = []
copy = torch.Tensor.contiguous
def watched(tensor, *args, **options):
    seen.append(anonymous())
    return copy(tensor, *args, **options)
torch.Tensor.contiguous = watched
network = load_transformer(sys.argv[2])
seen.append(anonymous())
size = sum(t.numel() * t.element_size() for t in network.state_dict().values()) / 1024
print((max(seen) - before) / size, size / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc")
@pytest.mark.parametrize("form", ["pth", "shards"])
def test_loading_takes_one_copy_of_the_weights(form: str, tmp_path: Path) -> None:
    small, state = transformer_state(), transformer_state(width=640, depth=4, text_channels=640)
    paths = []
    for name, content in (("small", small), ("large", state)):
        write = write_pth if form == "pth" else write_shards
        paths.append(str(write(tmp_path / f"{name}{'.pth' if form == 'pth' else ''}", content)))
    out = subprocess.run([sys.executable, "-c", MEMORY, *paths], capture_output=True, text=True, check=True)
    copies, megabytes = map(float, out.stdout.split())
    assert megabytes > 100
    assert 0.9 < copies < 1.15
