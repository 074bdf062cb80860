"""Pipeline folders: saved, loaded, and refused where they are damaged."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoint_files import transformer_state, write_pth, write_shards
from pipelines.helpers import draw, equal, quiet_pipeline
from scalekv.builtin import builtin_folder
from scalekv.errors import CheckpointError, InvalidInput
from scalekv.models.infinity import BSQAutoencoder
from scalekv.pipelines import InfinityPipeline, load_pipeline, tiny_pipeline, tiny_var_pipeline
from scalekv.planning import Profile

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="session")
def saved(pipeline: InfinityPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


@pytest.mark.parametrize("load", [InfinityPipeline.from_pretrained, load_pipeline], ids=["from_pretrained", "load"])
def test_a_saved_pipeline_returns(load: Callable[..., Any], saved: Path, pipeline: InfinityPipeline) -> None:
    again = load(saved)
    again.set_progress_bar_config(disable=True)
    assert isinstance(again, InfinityPipeline)
    assert equal(draw(pipeline), draw(again))


def test_a_fresh_process_draws_the_same(saved: Path, pipeline: InfinityPipeline, tmp_path: Path) -> None:
    code = (
        "import sys, numpy, torch\n"
        "from scalekv import load_pipeline\n"
        "torch.set_num_threads(1)\n"
        "pipe = load_pipeline(sys.argv[1])\n"
        "images = pipe('a fox', generator=torch.Generator().manual_seed(0), output_type='np').images\n"
        "numpy.save(sys.argv[2], images)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(saved), str(tmp_path / "a.npy")], check=True, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), draw(pipeline).images, atol=1e-6)


def test_stored_libraries_are_the_public_contract(saved: Path) -> None:
    index = json.loads((saved / "model_index.json").read_text())
    assert index["_class_name"] == "InfinityPipeline"
    libraries = {name: entry[0] for name, entry in index.items() if isinstance(entry, list)}
    assert libraries == {
        "transformer": "scalekv.models.infinity",
        "vae": "scalekv.models.infinity",
        "scheduler": "scalekv.models.infinity",
        "text_encoder": "transformers",
        "tokenizer": "transformers",
    }


def test_types_are_kept_or_chosen(saved: Path, tmp_path: Path) -> None:
    half = load_pipeline(saved, dtype="bfloat16")
    assert half.attention_dtype == half.vae.dtype == half.text_encoder.dtype == torch.bfloat16
    half.save_pretrained(tmp_path / "half")
    kept = load_pipeline(tmp_path / "half")
    assert kept.attention_dtype == kept.vae.dtype == kept.text_encoder.dtype == torch.bfloat16
    assert kept.transformer.head.weight.dtype == torch.float32
    wide = InfinityPipeline.from_pretrained(tmp_path / "half", dtype=torch.float32)
    assert wide.attention_dtype == torch.float32


@pytest.mark.parametrize("make", [tiny_pipeline, tiny_var_pipeline])
def test_a_folder_does_not_say_where_it_was_made(make: Callable[..., Any], tmp_path: Path) -> None:
    make().save_pretrained(tmp_path / "first")
    loaded = load_pipeline(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "second")
    loaded.transformer.save_pretrained(tmp_path / "second" / "transformer")
    files = [file for file in (tmp_path / "second").rglob("*") if file.suffix == ".json"]
    assert {file.name for file in files} >= {"model_index.json", "config.json", "scheduler_config.json"}
    for file in files:
        assert not re.search(rf"name_or_path|{re.escape(str(tmp_path))}", file.read_text()), file


def test_the_built_in_model_does_not_say_where_it_was_made() -> None:
    folder = builtin_folder("scenes")
    assert folder is not None
    for file in folder.rglob("*.json"):
        assert not re.search(r'_name_or_path|"(/|~|[A-Z]:)', file.read_text()), file


def test_parts_can_be_given(saved: Path, pipeline: InfinityPipeline) -> None:
    again = InfinityPipeline.from_pretrained(saved, vae=pipeline.vae, text_encoder=None, tokenizer=None)
    assert again.vae is pipeline.vae
    assert again.text_encoder is None


def test_the_profile_travels_with_the_folder(tmp_path: Path) -> None:
    pipeline = quiet_pipeline()
    pipeline.profile = Profile("tiny", 6, 4, pipeline.scheduler.resolve().schedule, roles={2: (0, 1)})
    pipeline.save_pretrained(tmp_path / "p")
    assert load_pipeline(tmp_path / "p").profile == pipeline.profile


def test_an_older_profile_does_not_stay(tmp_path: Path) -> None:
    pipeline = quiet_pipeline()
    pipeline.profile = Profile("tiny", 6, 4, pipeline.scheduler.resolve().schedule, roles={2: (0, 1)})
    pipeline.save_pretrained(tmp_path / "p")
    pipeline.profile = None
    pipeline.save_pretrained(tmp_path / "p")
    assert not (tmp_path / "p" / "profile.json").exists()


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "300KB"}], ids=["whole", "sharded"])
@pytest.mark.parametrize("options", [{}, {"dtype": "float32"}], ids=["stored", "float32"])
def test_variants_return(
    shards: dict[str, Any], options: dict[str, Any], pipeline: InfinityPipeline, tmp_path: Path
) -> None:
    pipeline.save_pretrained(tmp_path / "p", variant="fp16", **shards)
    again = load_pipeline(tmp_path / "p", variant="fp16", **options)
    again.set_progress_bar_config(disable=True)
    assert equal(draw(pipeline), draw(again))
    with pytest.raises(
        CheckpointError, match=r"holds only weights of the variant fp16; ask for one \(variant='fp16'\)"
    ):
        load_pipeline(tmp_path / "p")


def test_variants_are_checked(pipeline: InfinityPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "p", variant="fp16")
    weights = tmp_path / "p" / "vae" / "diffusion_pytorch_model.fp16.safetensors"
    rewrite(weights, lambda state: state.pop("decoder.conv_in.conv.weight"))
    with pytest.raises(CheckpointError, match="it lacks 1: decoder.conv_in.conv.weight"):
        load_pipeline(tmp_path / "p", variant="fp16")


def test_parts_without_the_variant_are_taken_as_they_are(saved: Path, folder: Path, pipeline: InfinityPipeline) -> None:
    shutil.rmtree(folder / "transformer")
    pipeline.transformer.save_pretrained(folder / "transformer", variant="fp16")
    again = InfinityPipeline.from_pretrained(folder, variant="fp16")
    again.set_progress_bar_config(disable=True)
    assert equal(draw(pipeline), draw(again))


@pytest.mark.parametrize("options", [{"safe_serialization": False}, {"use_flashpack": True}], ids=str)
def test_other_formats_are_refused_when_saving(
    options: dict[str, Any], pipeline: InfinityPipeline, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match="saved as safetensors only"):
        pipeline.save_pretrained(tmp_path / "p", **options)
    assert not (tmp_path / "p").exists()


def test_the_profile_of_a_known_model_is_built_in(saved: Path) -> None:
    from scalekv.models.catalog import model_spec
    from scalekv.models.infinity.schedules import schedule_for
    from scalekv.planning import resolve_profile

    spec, schedule = model_spec("infinity-2b"), schedule_for("1.000", "0.25M")
    found = resolve_profile(None, None, "infinity-2b", spec.geometry(schedule))
    assert found is not None
    assert found.schedule == schedule
    small = load_pipeline(saved).cache_geometry(schedule)
    assert resolve_profile(None, None, "infinity-2b", small) is None


def test_a_sharded_pipeline_returns(pipeline: InfinityPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "p", max_shard_size="300KB")
    assert (tmp_path / "p" / "transformer" / f"{WEIGHTS}.index.json").is_file()
    again = load_pipeline(tmp_path / "p")
    again.set_progress_bar_config(disable=True)
    assert equal(draw(pipeline), draw(again))


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    if path.suffix == ".json":
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))
    else:
        state = load_file(path)
        change(state)
        save_file(state, path)


def other_vae(folder: Path) -> None:
    shutil.rmtree(folder / "vae")
    multipliers = [1, 1, 1, 1, 2]
    BSQAutoencoder(8, 16, 24, multipliers, multipliers, num_res_blocks=1).save_pretrained(folder / "vae")


SPOILED: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "no transformer": (
        lambda folder: shutil.rmtree(folder / "transformer"),
        CheckpointError,
        "lacks the folder 'transformer' that its model_index.json names",
    ),
    "no text encoder": (
        lambda folder: shutil.rmtree(folder / "text_encoder"),
        CheckpointError,
        "lacks the folder 'text_encoder'",
    ),
    "no weights": (
        lambda folder: (folder / "transformer" / WEIGHTS).unlink(),
        CheckpointError,
        "holds neither model.safetensors.index.json nor model.safetensors",
    ),
    "cut weights": (
        lambda folder: (folder / "vae" / WEIGHTS).write_bytes((folder / "vae" / WEIGHTS).read_bytes()[:5000]),
        CheckpointError,
        f"{WEIGHTS} is no complete safetensors file",
    ),
    "a key less": (
        lambda folder: rewrite(folder / "transformer" / WEIGHTS, lambda state: state.pop("head.bias")),
        CheckpointError,
        r"it lacks 1: head\.bias",
    ),
    "a key more": (
        lambda folder: rewrite(folder / "vae" / WEIGHTS, lambda state: state.update(odd=torch.zeros(1))),
        CheckpointError,
        "holds 1 that do not belong: odd",
    ),
    "another shape": (
        lambda folder: rewrite(folder / "transformer" / "config.json", lambda config: config.update(text_maxlen=64)),
        CheckpointError,
        r"cfg_uncond of .* has shape \(128, 128\), expected \(64, 128\)",
    ),
    "impossible configuration": (
        lambda folder: rewrite(folder / "transformer" / "config.json", lambda config: config.update(num_heads=5)),
        CheckpointError,
        r"config\.json cannot be used \(width 64 does not split into 5 heads",
    ),
    "no configuration": (
        lambda folder: (folder / "vae" / "config.json").unlink(),
        CheckpointError,
        r"config\.json cannot be used",
    ),
    "swapped parts": (
        lambda folder: shutil.copy(folder / "transformer" / "config.json", folder / "vae" / "config.json"),
        CheckpointError,
        "holds a InfinityTransformer, expected a BSQAutoencoder",
    ),
    "another tokenizer": (
        other_vae,
        CheckpointError,
        "The VAE does not fit the transformer: it has 8 bits per latent pixel, expected 16",
    ),
    "cut text encoder": (
        lambda folder: (folder / "text_encoder" / "model.safetensors").write_bytes(b""),
        CheckpointError,
        r"is empty \(0 bytes\)",
    ),
    "no index": (
        lambda folder: (folder / "model_index.json").unlink(),
        InvalidInput,
        r"is no pipeline folder: it has no model_index\.json",
    ),
    "broken index": (
        lambda folder: (folder / "model_index.json").write_text("{"),
        InvalidInput,
        r"model_index\.json cannot be read",
    ),
    "nameless index": (
        lambda folder: (folder / "model_index.json").write_text("{}"),
        InvalidInput,
        "names no pipeline class; expected '_class_name'",
    ),
    "another pipeline": (
        lambda folder: rewrite(folder / "model_index.json", lambda index: index.update(_class_name="FluxPipeline")),
        InvalidInput,
        "is a FluxPipeline; scalekv runs InfinityPipeline",
    ),
    "a profile of another version": (
        lambda folder: (folder / "profile.json").write_text('{"format": "scalekv-profile", "format_version": 99}'),
        InvalidInput,
        "has profile version 99",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_folder_is_refused(case: str, folder: Path) -> None:
    spoil, kind, message = SPOILED[case]
    spoil(folder)
    with pytest.raises(kind, match=message):
        load_pipeline(folder)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("no/such/folder", {}, "There is no folder 'no/such/folder', and it is no hub name"),
        ("nothing-here", {}, "There is no folder 'nothing-here'"),
        (
            "nobody/nothing",
            {},
            "Cannot load 'nobody/nothing': there is no such folder, and the model hub does not give it",
        ),
        ("infinity-2b", {}, r"infinity-2b is published as official weights; download infinity_2b_reg\.pth and"),
        (".", {"device": "gpu"}, "Unknown device 'gpu'"),
        (".", {"dtype": "int8"}, "is no pipeline folder|dtype must be"),
    ],
)
def test_names_that_lead_nowhere(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as refusal:
        load_pipeline(name, **options)
    assert "\n" not in str(refusal.value)


def test_an_unknown_dtype_is_refused(saved: Path) -> None:
    with pytest.raises(InvalidInput, match="dtype must be float32, bfloat16 or float16, got 'int8'"):
        load_pipeline(saved, dtype="int8")


def test_official_weights_are_recognised(tmp_path: Path) -> None:
    file = write_pth(tmp_path / "infinity.pth", transformer_state())
    with pytest.raises(InvalidInput, match="is a file, expected a pipeline folder.*'scalekv convert'"):
        load_pipeline(file)
    shards = write_shards(tmp_path / "weights", transformer_state())
    with pytest.raises(InvalidInput, match="holds official weights, not a pipeline.*'scalekv convert'"):
        load_pipeline(shards)
