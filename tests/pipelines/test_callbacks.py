"""Callbacks, interruption and aborted calls: nothing of a call outlives it."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.helpers import draw, equal, quiet_pipeline
from scalekv.errors import InvalidInput
from scalekv.pipelines import InfinityPipeline
from scalekv.policies import SlidingWindow


def test_a_callback_sees_every_segment(pipeline: InfinityPipeline) -> None:
    seen: list[tuple[int, int, set[str], tuple[int, ...]]] = []

    def watch(owner: InfinityPipeline, step: int, timestep: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert owner is pipeline
        seen.append((step, timestep, set(tensors), tuple(tensors["logits"].shape)))
        assert tensors["latents"].shape == (1, 16, 16, 16)
        return tensors

    names = ["latents", "logits"]
    watched = draw(pipeline, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=names)
    assert equal(watched, draw(pipeline))
    tokens = watched.schedule.tokens
    assert seen == [(step, step, {"latents", "logits"}, (1, tokens[step], 32)) for step in range(10)]


def test_latents_can_be_replaced(pipeline: InfinityPipeline) -> None:
    def clear(_: Any, step: int, __: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 9 else {}

    latent = draw(pipeline, callback_on_step_end=clear, output_type="latent").images
    assert not latent.any()


def test_a_callback_may_return_nothing(pipeline: InfinityPipeline) -> None:
    assert equal(draw(pipeline, callback_on_step_end=lambda *_: None), draw(pipeline))


def test_previews_decode_at_any_time(pipeline: InfinityPipeline) -> None:
    previews = []

    def preview(owner: InfinityPipeline, _: int, __: int, tensors: dict[str, Tensor]) -> None:
        previews.append(owner.vae.decode(tensors["latents"]))

    result = draw(pipeline, callback_on_step_end=preview, output_type="pt")
    assert all(one.shape == (1, 3, 256, 256) for one in previews)
    assert torch.equal((previews[-1] + 1) / 2, result.images)


def test_an_interrupted_call_decodes_what_there_is() -> None:
    pipeline = quiet_pipeline()
    latents = []

    def stop(owner: InfinityPipeline, step: int, _: int, tensors: dict[str, Tensor]) -> None:
        latents.append(tensors["latents"])
        if step == 3:
            owner.stop()

    result = draw(pipeline, callback_on_step_end=stop, output_type="latent")
    assert result.interrupted
    assert len(latents) == 4
    assert torch.equal(result.images, latents[-1])
    assert pipeline.interrupt
    assert not draw(pipeline).interrupted


class Fails:
    """A callback that ends the call at its fourth segment, remembering what was alive."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.alive: list[weakref.ref[Tensor]] = []

    def __call__(self, pipeline: InfinityPipeline, step: int, _: int, tensors: dict[str, Tensor]) -> None:
        self.alive += [weakref.ref(tensor) for tensor in tensors.values()]
        if step == 3:
            raise self.error


def tensors_alive() -> int:
    gc.collect()
    return sum(1 for one in gc.get_objects() if type(one) in (Tensor, torch.nn.Parameter))


@pytest.mark.parametrize("error", [RuntimeError("from the callback"), KeyboardInterrupt(), MemoryError()], ids=repr)
@pytest.mark.parametrize("offload", [False, True])
def test_an_aborted_call_leaves_nothing_behind(error: BaseException, offload: bool) -> None:
    pipeline = quiet_pipeline()
    if offload:
        pipeline.enable_model_cpu_offload(device="cpu")
    policy = SlidingWindow(budget="40%")
    before = draw(pipeline, kv_cache=policy)
    known = tensors_alive()
    callback = Fails(error)
    with pytest.raises(type(error)) as caught:
        draw(
            pipeline,
            kv_cache=policy,
            callback_on_step_end=callback,
            callback_on_step_end_tensor_inputs=["latents", "logits"],
        )
    error.__traceback__ = None
    del caught
    assert tensors_alive() == known
    assert callback.alive
    assert not any(one() is not None for one in callback.alive)
    assert equal(draw(pipeline, kv_cache=policy), before)


def test_a_failing_decoder_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = quiet_pipeline()
    before = draw(pipeline)
    known = tensors_alive()

    def fail(_: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.vae, "decode", fail)
        with pytest.raises(RuntimeError, match="out of memory") as caught:
            draw(pipeline)
        caught.value.__traceback__ = None
        del caught
    assert tensors_alive() == known
    assert equal(draw(pipeline), before)


def test_latents_of_another_shape_are_refused(pipeline: InfinityPipeline) -> None:
    with pytest.raises(InvalidInput, match=r"latents from callback_on_step_end must have shape \(1, 16, 16, 16\)"):
        draw(pipeline, callback_on_step_end=lambda *_: {"latents": torch.zeros(1)})


def test_latents_returned_while_stopping_count(pipeline: InfinityPipeline) -> None:
    def clear(owner: InfinityPipeline, step: int, _: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if step == 3:
            owner.stop()
            return {"latents": torch.zeros_like(tensors["latents"])}
        return {}

    result = draw(pipeline, callback_on_step_end=clear, output_type="latent")
    assert result.interrupted
    assert not result.images.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_replaced_latents_keep_the_type_of_the_run(pipeline: InfinityPipeline, dtype: torch.dtype) -> None:
    def round_them(_: Any, step: int, __: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": tensors["latents"].to(dtype)}

    assert draw(pipeline, callback_on_step_end=round_them, output_type="latent").images.dtype == torch.float32


@pytest.mark.parametrize("answer", [torch.zeros(1, 16, 16, 16), True, False, [], "stop"], ids=lambda one: type(one))
def test_answers_that_are_no_dict_are_refused(pipeline: InfinityPipeline, answer: Any) -> None:
    with pytest.raises(InvalidInput, match="callback_on_step_end must return a dict such as .* or None, got"):
        draw(pipeline, callback_on_step_end=lambda *_: answer)


def test_the_shape_counts_where_latents_were_not_asked_for(pipeline: InfinityPipeline) -> None:
    options = {"callback_on_step_end_tensor_inputs": []}
    with pytest.raises(InvalidInput, match="must have shape"):
        draw(pipeline, callback_on_step_end=lambda *_: {"latents": torch.zeros(1)}, **options)
    nothing = torch.full((1, 16, 16, 16), torch.nan)
    with pytest.raises(InvalidInput, match="not finite"):
        draw(pipeline, callback_on_step_end=lambda *_: {"latents": nothing}, **options)


def test_a_call_inside_a_callback_has_a_switch_of_its_own(pipeline: InfinityPipeline) -> None:
    inner: list[Any] = []

    def stop_then_draw(owner: InfinityPipeline, step: int, _: int, __: dict[str, Tensor]) -> None:
        if step == 3:
            owner.stop()
            inner.append(draw(owner))

    assert draw(pipeline, callback_on_step_end=stop_then_draw).interrupted
    assert not inner[0].interrupted

    def stop_inside(owner: InfinityPipeline, step: int, _: int, __: dict[str, Tensor]) -> None:
        if step == 3:
            inner.append(draw(owner, callback_on_step_end=lambda one, *_: one.stop()))
            with pytest.raises(InvalidInput):
                draw(owner, callback_on_step_end=lambda one, *_: one.stop() or 1)

    assert not draw(pipeline, callback_on_step_end=stop_inside).interrupted
    assert inner[1].interrupted


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_are_freed_at_the_end(fails: bool, pipeline: InfinityPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[bool] = []
    monkeypatch.setattr(pipeline, "maybe_free_model_hooks", lambda: freed.append(True))
    if fails:
        with pytest.raises(RuntimeError, match="from the callback"):
            draw(pipeline, callback_on_step_end=Fails(RuntimeError("from the callback")))
    else:
        draw(pipeline)
    assert freed == [True]
