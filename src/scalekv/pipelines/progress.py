"""What a running call shows and asks after every segment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from scalekv.cache import KVCache
from scalekv.pipelines.arguments import check_like
from scalekv.planning import Segment, format_bytes


def watcher(
    pipeline: Any, cache: KVCache, bar: Any, callback: Callable[..., Any] | None, names: Sequence[str]
) -> Callable[[Segment, Tensor, Tensor], Tensor | bool | None]:
    """What a generation loop calls after each segment: the progress bar, the user's callback, the stop switch.

    Args:
        pipeline: handed to the callback; its ``interrupt`` ends the run.
        cache: its live bytes are shown.
        bar: the progress bar.
        callback: the user's, or ``None``.
        names: which of ``"latents"`` and ``"logits"`` the callback gets.
    """

    def on_segment(segment: Segment, latents: Tensor, logits: Tensor) -> Tensor | bool | None:
        bar.set_postfix_str(f"kv {format_bytes(cache.live_bytes)}", refresh=False)
        bar.update()
        found = {"latents": latents, "logits": logits}
        changed = call_back(pipeline, callback, segment, {name: found[name] for name in names})
        return True if pipeline.interrupt else changed

    return on_segment


def call_back(
    pipeline: Any, callback: Callable[..., Any] | None, segment: Segment, tensors: dict[str, Tensor]
) -> Tensor | None:
    """Tell the user's callback that ``segment`` is drawn; the latents it puts in place of the run's, if it does.

    Raises:
        InvalidInput: latents of another shape.
    """
    if callback is None:
        return None
    before = tensors.get("latents")
    answer = callback(pipeline, segment.index, segment.index, tensors)
    after = (answer or {}).get("latents", before)
    return None if after is before else check_like("latents from callback_on_step_end", after, before)
