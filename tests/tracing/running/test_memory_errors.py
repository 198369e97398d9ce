"""Memory that runs out in mid-run: the sentence says where, and what was traced stays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from moetool import read_trace, trace_model
from moetool.errors import OutOfMemoryError
from tests.tracing.recording.writing import make_sequences, trace_writing
from tests.tracing.running.generation.test_stacks import build_switch

TEXTS = [f"Prompt number {number}" for number in range(10)]


@pytest.fixture(scope="module")
def pair(demo: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(demo).eval(), AutoTokenizer.from_pretrained(demo)


@contextmanager
def out_of_memory(module: torch.nn.Module, *, on_call: int) -> Iterator[None]:
    """Have a module run out of memory at the end of one of its calls, counted from 1."""
    num_calls = 0

    def fail(*_: object) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls == on_call:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    hook = module.register_forward_hook(fail)
    try:
        yield
    finally:
        hook.remove()


# Each batch has one prompt. The module that fails, the call of it, and the words for the place.
PLACES = {
    "embedding": ("model.embed_tokens", 6, {}, "prefill, before the first routed layer"),
    "attention": ("model.layers.3.self_attn", 6, {}, "prefill, in or after layer 2"),
    "experts": ("model.layers.3.mlp.experts", 6, {}, "prefill, in or after layer 3"),
    "head": ("lm_head", 6, {}, "prefill, in or after layer 5"),
    # A prompt takes four calls: one for its text, and one for each new token except the last.
    "prompt to go on": (
        "model.layers.0.self_attn",
        21,
        {"max_new_tokens": 4},
        "prefill, before the first routed layer",
    ),
    "new token": ("lm_head", 23, {"max_new_tokens": 4}, "decode, in or after layer 5"),
}


@pytest.mark.parametrize(("path", "on_call", "options", "place"), PLACES.values(), ids=PLACES)
def test_the_place_is_named_and_earlier_windows_are_kept(
    path: str,
    on_call: int,
    options: dict[str, Any],
    place: str,
    pair: tuple[Any, Any],
    tmp_path: Path,
) -> None:
    output = tmp_path / "trace.parquet"
    num_tokens = len(pair[1].encode(TEXTS[5]))
    with (
        out_of_memory(pair[0].get_submodule(path), on_call=on_call),
        pytest.raises(OutOfMemoryError) as caught,
    ):
        trace_model(pair, TEXTS, batch_size=1, output=output, **options)
    error = caught.value
    assert error.message == (
        f"Out of memory in {place}, in a batch of 1 prompt of up to {num_tokens} tokens on cpu."
    )
    assert "Tried to allocate 2.00 GiB" in error.facts[0]
    for option in ("--batch-size", "--max-batch-tokens", "--resume"):
        assert option in error.hint
    assert not output.exists()
    kept = read_trace(output.with_name("trace.parquet.partial"))
    assert set(kept["prompt_id"].astype(int)) >= {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("path", "on_call", "place"),
    [
        ("encoder.block.1.layer.0", 1, "prefill, before the first routed layer"),
        ("decoder.block.0.layer.0", 1, "prefill, before the first routed layer"),
        ("decoder.block.0.layer.0", 2, "decode, before the first routed layer"),
        ("lm_head", 2, "decode, in or after decoder layer"),
    ],
)
def test_both_stacks_of_an_encoder_decoder_read_before_they_decode(
    path: str, on_call: int, place: str
) -> None:
    model = build_switch()
    with (
        out_of_memory(model.get_submodule(path), on_call=on_call),
        pytest.raises(OutOfMemoryError, match=place),
    ):
        trace_writing(model, make_sequences())


def test_another_error_is_not_explained(pair: tuple[Any, Any]) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    hook = pair[0].lm_head.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="a bug"):
            trace_model(pair, TEXTS[:1])
    finally:
        hook.remove()
