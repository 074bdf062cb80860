"""What a running call shows and asks after every segment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from scalekv.cache import KVCache
from scalekv.errors import InvalidInput
from scalekv.models.stopping import Stop
from scalekv.pipelines.arguments import check_like
from scalekv.planning import Segment, format_bytes


def watcher(
    pipeline: Any, cache: KVCache, bar: Any, callback: Callable[..., Any] | None, names: Sequence[str]
) -> Callable[[Segment, Tensor, Tensor], Tensor | Stop | None]:
    """What a generation loop calls after each segment: the progress bar, the user's callback, the stop switch.

    Args:
        pipeline: handed to the callback; its ``interrupt`` ends the run.
        cache: its live bytes are shown.
        bar: the progress bar.
        callback: the user's, or ``None``.
        names: which of ``"latents"`` and ``"logits"`` the callback gets.
    """

    def on_segment(segment: Segment, latents: Tensor, logits: Tensor) -> Tensor | Stop | None:
        bar.set_postfix_str(f"kv {format_bytes(cache.live_bytes)}", refresh=False)
        bar.update()
        found = {"latents": latents, "logits": logits}
        changed = call_back(pipeline, callback, segment, latents, {name: found[name] for name in names})
        if pipeline.interrupt:
            return Stop(latents if changed is None else changed)
        return changed

    return on_segment


def call_back(
    pipeline: Any, callback: Callable[..., Any] | None, segment: Segment, latents: Tensor, tensors: dict[str, Tensor]
) -> Tensor | None:
    """Tell the user's callback that ``segment`` is drawn; the latents it puts in place of the run's, if it does.

    They come back in the type and on the device of ``latents``.

    Raises:
        InvalidInput: an answer that is no dict, or latents of another shape or with numbers that are not finite.
    """
    if callback is None:
        return None
    answer = callback(pipeline, segment.index, segment.index, tensors)
    if answer is not None and not isinstance(answer, Mapping):
        raise InvalidInput(
            f"callback_on_step_end must return a dict such as {{'latents': ...}} or None, got {type(answer).__name__}."
        )
    after = latents if answer is None else answer.get("latents", latents)
    return None if after is latents else check_like("latents from callback_on_step_end", after, latents)
