"""``scalekv info``: what is in a checkpoint file or a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scalekv.cli.options import Json
from scalekv.cli.output import Output

if TYPE_CHECKING:
    from scalekv.models.inspection import CheckpointInfo


def info(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Checkpoint file, sharded folder, pipeline folder or profile.")
    ],
    json: Json = False,
) -> None:
    """Tell what is in a file or folder.

    Its kind, the known models it fits, and the profile that fits it; of a profile, where every layer attends.
    """
    output = Output(json=json)
    with output.guarded():
        from scalekv.models.inspection import inspect_checkpoint

        found = inspect_checkpoint(path)
        _print_text(output, found)
        output.result(found.to_dict())


def _print_text(output: Output, found: CheckpointInfo) -> None:
    output.say(found.description, style="bold")
    lines = {
        "kind": found.kind,
        "path": found.path,
        "fits models": ", ".join(found.models) or None,
        "weights": None if found.parameters is None else f"{found.parameters:,}",
        "stored as": ", ".join(found.dtypes) or None,
        "bits": None if found.bits is None else str(found.bits),
        "picture decoders": ", ".join(found.autoencoders) or None,
        "profiles": ", ".join(found.profiles) or None,
    }
    for part, kind in (found.components or {}).items():
        lines[part] = kind or "left out"
    width = max(map(len, lines))
    for name, value in lines.items():
        if value is not None:
            output.say(f"{name:<{width}}  {value}")
    for name, setting in sorted((found.config or {}).items()):
        if setting is not None:
            output.say(f"{'':<{width}}  {name} = {setting}", style="dim")
    if found.attention is not None:
        _print_attention(output, found.attention)


def _print_attention(output: Output, shares: dict[str, tuple[float, ...]]) -> None:
    output.say()
    output.say("attention by layer in percent, mean of all segments from the fourth on")
    rows = [
        (str(layer), *(f"{100 * share:.1f}" for share in values))
        for layer, values in enumerate(zip(*shares.values(), strict=True))
    ]
    output.table(("layer", *shares), rows)
