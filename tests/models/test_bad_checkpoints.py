"""Files that cannot be used: each is refused with one clear sentence, never loaded in part."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from models.checkpoint_files import autoencoder_state, transformer_state, write_pth, write_shards
from scalekv.errors import CheckpointError
from scalekv.models.catalog import model_spec
from scalekv.models.infinity.checkpoint import check_tokenizer_name, load_autoencoder, load_transformer
from scalekv.models.inspection import inspect_checkpoint

Make = Callable[[Path], Path]
QKV = "block_chunks.0.module.1.sa.mat_qkv.weight"


class Code:
    """An object whose unpickling would run code."""

    def __reduce__(self) -> Any:
        return (print, ("this must never be printed",))


def raw(content: bytes, name: str = "t.pth") -> Make:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def cut(share: float, name: str = "t.pth") -> Make:
    def make(folder: Path) -> Path:
        path = folder / name
        (save_file if name.endswith("safetensors") else torch.save)(transformer_state(), path)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        return path

    return make


def changed(**tensors: Any) -> Make:
    """A transformer file with other tensors; ``None`` leaves one out. Dots of names are written as ``__``."""

    def make(folder: Path) -> Path:
        state = transformer_state()
        for name, tensor in tensors.items():
            name = name.replace("__", ".")
            if tensor is None:
                del state[name]
            else:
                state[name] = tensor(state.get(name)) if callable(tensor) else tensor
        return write_pth(folder / "t.pth", state)

    return make


def content(make_content: Callable[[], Any], name: str = "t.pth") -> Make:
    return lambda folder: write_pth(folder / name, make_content())


def shards(spoil: Callable[[Path], object]) -> Make:
    def make(folder: Path) -> Path:
        path = write_shards(folder / "weights", transformer_state())
        spoil(path)
        return path

    return make


def rename_in_index(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())
    places["weight_map"]["head.extra"] = "model-00001-of-00003.safetensors"
    index.write_text(json.dumps(places))


def without(prefix: str) -> Make:
    return content(lambda: {name: one for name, one in transformer_state().items() if not name.startswith(prefix)})


FIRST = "model-00001-of-00003.safetensors"
INDEX = "model.safetensors.index.json"
TRANSFORMERS: dict[str, tuple[Make, dict[str, Any], str]] = {
    "no such file": (lambda folder: folder / "gone.pth", {}, r"There is no file or folder .*gone\.pth; check the path"),
    "empty file": (raw(b""), {}, r"is empty \(0 bytes\); download it again"),
    "git lfs pointer": (
        raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 8818800000\n"),
        {},
        r"is a Git LFS pointer, not the weights; fetch them with 'git lfs pull'",
    ),
    "git lfs pointer as safetensors": (
        raw(b"version https://git-lfs.github.com/spec/v1\n", "t.safetensors"),
        {},
        "Git LFS pointer",
    ),
    "web page": (raw(b"<!DOCTYPE html><html>Not found</html>"), {}, "is a web page, not a weight file"),
    "text": (raw(b"hello there, no weights"), {}, r"is no PyTorch file \(it begins with b'hell'\)"),
    "damaged old pickle": (raw(b"\x80\x02not a pickle"), {}, "is damaged|is truncated or damaged"),
    "half a pth": (cut(0.5), {}, "is truncated or damaged, PyTorch cannot read it; download it again"),
    "nearly all of a pth": (cut(0.99), {}, "is truncated or damaged"),
    "half a safetensors": (cut(0.5, "t.safetensors"), {}, r"is no complete safetensors file \(.*\); download it again"),
    "head of a safetensors": (cut(0.001, "t.safetensors"), {}, "is no complete safetensors file"),
    "other zip": (raw(b"PK\x03\x04" + bytes(200)), {}, "is truncated or damaged"),
    "code": (content(lambda: {"a": Code()}), {}, r"holds Python objects beside weights, which could run code"),
    "whole module": (content(lambda: torch.nn.Linear(2, 2)), {}, "holds Python objects beside weights"),
    "a list": (content(lambda: [torch.zeros(1)]), {}, "holds no weights; expected a table of named tensors"),
    "an empty table": (content(dict), {}, "holds no weights"),
    "another model": (
        content(lambda: {"conv.weight": torch.zeros(3)}),
        {},
        r"is no infinity transformer: expected names such as word_embed\.weight, found conv\.weight",
    ),
    "the tokenizer": (content(autoencoder_state), {}, "is an infinity vae, expected an infinity transformer"),
    "the tokenizer's training checkpoint": (
        content(lambda: {"vae": autoencoder_state()}),
        {},
        "is an infinity vae, expected an infinity transformer",
    ),
    "no averaged weights": (content(transformer_state), {"ema": True}, r"at '', expected 'trainer\.gpt_ema_fsdp'"),
    "only averaged weights": (
        content(lambda: {"trainer": {"gpt_ema_fsdp": transformer_state()}}),
        {},
        r"holds its infinity transformer at 'trainer\.gpt_ema_fsdp', .*pass ema=True",
    ),
    "a key less": (
        changed(**{QKV.replace(".", "__"): None}),
        {},
        rf"has 105 tensors, expected 106: it lacks 1: {re.escape(QKV)}; the file is incomplete",
    ),
    "a block less": (
        without("block_chunks.1.module.0."),
        {},
        r"lacks 21: block_chunks\.1\.module\.0\.ada_gss, .*, \.\.\. \(21 in all\)",
    ),
    "a key more": (
        changed(surprise__weight=torch.zeros(2)),
        {},
        r"has 107 tensors, expected 106: it holds 1 that do not belong: surprise\.weight",
    ),
    "another shape": (
        changed(head__weight=lambda old: old[:-1]),
        {},
        r"head\.weight of .* has shape \(11, 64\), expected \(12, 64\)",
    ),
    "another dimension": (
        changed(word_embed__weight=lambda old: old.flatten()),
        {},
        r"word_embed\.weight of .* has shape \(384,\), expected 2 dimensions",
    ),
    "no size": (changed(text_norm__weight=None), {}, r"lacks text_norm\.weight, which tells its size"),
    "no blocks": (without("block_chunks."), {}, r"should hold blocks named .*, found neither"),
    "two kinds of blocks": (
        changed(**{"blocks__0__x": torch.zeros(1)}),
        {},
        r"should hold blocks named .*, found both",
    ),
    "quantised": (
        changed(head__weight=lambda old: old.to(torch.int8)),
        {},
        r"head\.weight of .* is stored as int8, expected float32, bfloat16 or float16",
    ),
    "no heads": (
        changed(**{f"block_chunks__{c}__module__{m}__sa__scale_mul_1H11": None for c in (0, 1) for m in (0, 1)}),
        {},
        r"Cannot tell the heads of .*: block_chunks\.0\.module\.0\.sa\.scale_mul_1H11 is None for width 64",
    ),
    "uneven heads": (
        changed(block_chunks__0__module__0__sa__scale_mul_1H11=torch.zeros(1, 5, 1, 1)),
        {},
        r"scale_mul_1H11 is \(1, 5, 1, 1\) for width 64; expected \(1, heads, 1, 1\)",
    ),
    "for another tokenizer": (
        content(transformer_state),
        {"codebook_bits": 32},
        r"The VAE does not fit the transformer: word_embed\.weight of .* has 6 bits per token, a VAE of 32 bits per "
        r"latent pixel needs 32 or 128; use the VAE it was trained with",
    ),
    "patchify that cannot be": (content(transformer_state), {"patchify": True}, "6 bits per token, which are no 2 x 2"),
    "another known model": (
        content(transformer_state),
        {"model": "infinity-2b"},
        r"is not infinity-2b: it has layers 4, expected 32",
    ),
    "another model under a published name": (
        content(transformer_state, "infinity_2b_reg.pth"),
        {},
        r"infinity_2b_reg\.pth is not infinity-2b: it has layers 4, expected 32; the file is incomplete",
    ),
    "an empty folder": (lambda folder: folder, {}, rf"holds neither {INDEX} nor model\.safetensors"),
    "a missing shard": (
        shards(lambda folder: (folder / FIRST).unlink()),
        {},
        rf"names the shard {FIRST} \(36 tensors\), which is missing from the folder; download all 3 shards",
    ),
    "an index with a key too many": (
        shards(rename_in_index),
        {},
        rf"The index says that .*{FIRST} holds head\.extra, which it does not",
    ),
    "half a shard": (
        shards(lambda folder: (folder / FIRST).write_bytes((folder / FIRST).read_bytes()[:30000])),
        {},
        rf"{FIRST} is no complete safetensors file",
    ),
    "an index that is no index": (
        shards(lambda folder: (folder / INDEX).write_text('{"metadata": {}}')),
        {},
        r"is no safetensors index \(it lacks 'weight_map'\)",
    ),
    "an index that is no JSON": (
        shards(lambda folder: (folder / INDEX).write_text("{")),
        {},
        "is no safetensors index",
    ),
    "an empty index": (shards(lambda folder: (folder / INDEX).write_text("")), {}, r"is empty \(0 bytes\)"),
}


@pytest.mark.parametrize("case", TRANSFORMERS)
def test_a_bad_transformer_is_refused(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, options, message = TRANSFORMERS[case]
    with pytest.raises(CheckpointError, match=message) as refusal:
        load_transformer(make(tmp_path), **options)
    assert "\n" not in str(refusal.value)
    assert "must never be printed" not in capsys.readouterr().out


def vae_file(spoil: Callable[[dict[str, Any]], Any]) -> Make:
    def make(folder: Path) -> Path:
        state = autoencoder_state()
        spoil(state)
        return write_pth(folder / "v.pth", {"vae": state})

    return make


AUTOENCODERS: dict[str, tuple[Make, str]] = {
    "the transformer": (content(transformer_state), "is an infinity transformer, expected an infinity vae"),
    "a fine-tuned transformer": (
        content(lambda: {"trainer": {"gpt_fsdp": transformer_state()}}),
        "is an infinity transformer, expected an infinity vae",
    ),
    "only the discriminator": (
        content(lambda: {"discriminator": {"main.0.weight": torch.zeros(2)}}),
        r"is no infinity vae: .* found main\.0\.weight \(places in the file: 'discriminator'\)",
    ),
    "a key less": (
        vae_file(lambda state: state.pop("decoder.mid.block_1.conv1.conv.bias")),
        r"lacks 1: decoder\.mid\.block_1\.conv1\.conv\.bias",
    ),
    "a key more": (
        vae_file(lambda state: state.update({"decoder.mid.attn_1.q.conv.weight": torch.zeros(1)})),
        r"holds 1 that do not belong: decoder\.mid\.attn_1\.q\.conv\.weight",
    ),
    "another shape": (
        vae_file(lambda state: state.update({"decoder.conv_out.conv.weight": torch.zeros(4, 24, 3, 3)})),
        r"decoder\.conv_out\.conv\.weight of .* has shape \(4, 24, 3, 3\), expected \(3, 24, 3, 3\)",
    ),
    "no encoder": (
        content(lambda: {name: one for name, one in autoencoder_state().items() if not name.startswith("encoder.")}),
        r"lacks encoder\.conv_in\.conv\.weight, which tells its size",
    ),
    "no levels": (
        content(lambda: {name: one for name, one in autoencoder_state().items() if ".up." not in name}),
        r"lacks encoder\.down\.\* or decoder\.up\.\* blocks",
    ),
    "uneven channels": (
        vae_file(lambda state: state.update({"encoder.down.0.block.0.conv1.conv.weight": torch.zeros(25, 24, 3, 3)})),
        r"encoder\.down\.0\.block\.0\.conv1\.conv\.weight of .* has 25 channels, expected a multiple of 24",
    ),
    "impossible channels": (
        vae_file(lambda state: state.update({"encoder.conv_in.conv.weight": torch.zeros(12, 3, 3, 3)})),
        r"describes no BSQAutoencoder that can run|has shape",
    ),
    "video weights": (
        vae_file(lambda state: state.update({"encoder.conv_in.conv.weight": torch.zeros(24, 3, 1, 3, 3)})),
        r"encoder\.conv_in\.conv\.weight of .* has shape \(24, 3, 1, 3, 3\), expected 4 dimensions",
    ),
}


@pytest.mark.parametrize("case", AUTOENCODERS)
def test_a_bad_tokenizer_is_refused(case: str, tmp_path: Path) -> None:
    make, message = AUTOENCODERS[case]
    with pytest.raises(CheckpointError, match=message) as refusal:
        load_autoencoder(make(tmp_path))
    assert "\n" not in str(refusal.value)


def test_the_tokenizer_of_equal_shape_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match=r"not the VAE of infinity-2b.*use infinity_vae_d32reg\.pth"):
        check_tokenizer_name("some/infinity_vae_d32.pth", model_spec("infinity-2b"))
    check_tokenizer_name("some/infinity_vae_d32_reg.pth", model_spec("infinity-2b"))


@pytest.mark.parametrize(
    "case", ["no such file", "empty file", "half a pth", "code", "another model", "a missing shard"]
)
def test_inspection_refuses_them_too(case: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        inspect_checkpoint(TRANSFORMERS[case][0](tmp_path))
