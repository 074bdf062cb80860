"""``scalekv convert``: official checkpoint files to a pipeline folder."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated

import typer

from scalekv.cli.files import check_new_folder
from scalekv.cli.options import Dtype, Json, Quiet, checked, dtype_from, option, parse_bytes_option, whole
from scalekv.cli.output import Output, quiet_libraries
from scalekv.errors import CheckpointError, InvalidInput
from scalekv.models.catalog import model_names, model_spec


def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Transformer: .pth, .safetensors or sharded folder.")],
    vae: Annotated[Path, option("--vae", metavar="FILE", help="Its picture tokenizer: .pth or .safetensors.")],
    out: Annotated[Path, option("--out", "-o", metavar="FOLDER", help="Folder to make, or an empty one.")],
    model: Annotated[
        str | None,
        option("--model", "-m", metavar="NAME", help=f"{', '.join(model_names())}. Default by name and shapes."),
    ] = None,
    text_encoder: Annotated[
        str | None,
        option("--text-encoder", metavar="PATH", help="T5 encoder to include: a folder or hub name. Default none."),
    ] = None,
    dtype: Dtype = None,
    patchify: Annotated[
        bool | None,
        option("--patchify/--no-patchify", help="Whether tokens cover 2 x 2 latent pixels. Default by the tokenizer."),
    ] = None,
    ema: Annotated[bool, option("--ema", help="Take the averaged weights of a fine-tuning checkpoint.")] = False,
    patch_nums: Annotated[
        str | None,
        option(
            "--patch-nums",
            metavar="SIDES",
            help="For VAR: tokens per side of every segment, such as 1,2,3,4. Default what the file tells.",
        ),
    ] = None,
    num_heads: Annotated[
        int | None,
        option("--num-heads", parser=whole, help="For VAR: heads. Default what the file tells, or 64 channels each."),
    ] = None,
    max_shard_size: Annotated[str, option("--max-shard-size", metavar="BYTES", help="Largest weight file.")] = "5GB",
    overwrite: Annotated[bool, option("--overwrite", help="Replace an existing pipeline folder.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Make a pipeline folder of official files.

    The folder is what 'scalekv generate --model FOLDER' reads.
    """
    output, begin = Output(json=json, quiet=quiet), time.perf_counter()
    name, sides = dtype_from(dtype), _sides(patch_nums)
    checked("--num-heads", num_heads, lambda value: value >= 1, "at least 1")
    known = None if model is None else model_spec(model).name
    shard_bytes = parse_bytes_option("--max-shard-size", max_shard_size) or 0
    for what, path in (("transformer", source), ("VAE", vae)):
        if not path.exists():
            raise CheckpointError(f"There is no {what} at {path}; give the downloaded file or folder.")
    check_new_folder(out, overwrite=overwrite)
    with output.guarded():
        quiet_libraries()
        from scalekv.models.inspection import inspect_checkpoint
        from scalekv.pipelines import convert as convert_files

        output.note(f"Converting {source} to {out} ...")
        folder = convert_files(
            source,
            vae,
            out,
            model=known,
            text_encoder=text_encoder,
            dtype=name,
            patchify=patchify,
            ema=ema,
            patch_nums=sides,
            num_heads=num_heads,
            max_shard_size=shard_bytes,
            overwrite=overwrite,
        )
        seconds = time.perf_counter() - begin
        found = inspect_checkpoint(folder)
        output.say(f"{folder}  {found.description}, {seconds:.1f} s")
        output.result({**found.to_dict(), "seconds": seconds})


def _sides(text: str | None) -> list[int] | None:
    """The value of ``--patch-nums``.

    Raises:
        InvalidInput: anything but whole numbers from 1.
    """
    if text is None:
        return None
    pieces = [piece.strip() for piece in text.split(",")]
    if not all(re.fullmatch(r"[1-9]\d{0,3}", piece) for piece in pieces):
        raise InvalidInput(f"--patch-nums is {text!r:.80}; write tokens per side of every segment, such as '1,2,3,4'.")
    return [int(piece) for piece in pieces]
