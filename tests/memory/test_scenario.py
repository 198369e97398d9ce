"""Scenarios, and refusals before anything is built."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.cli.options.values import parse_dtype
from moetool.errors import UsageError
from moetool.memory.scenario import Dtype, Scenario, Task
from moetool.quantizing.kinds import Quantization
from moetool.tracing.options import TraceOptions

SIZES = ("batch_size", "num_prompt_tokens", "num_new_tokens")
TOO_LARGE = {"batch_size": 2**20 + 1, "num_prompt_tokens": 2**27 + 1, "num_new_tokens": 2**27 + 1}


def make(name: str, number: int) -> Scenario:
    """Return the usual scenario with one size as given."""
    sizes: dict[str, Any] = {name: number}
    return Scenario(**sizes)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("number", [0, -1])
def test_sizes_of_nothing_are_refused(name: str, number: int) -> None:
    with pytest.raises(UsageError, match=rf"(?m)^The .* can't be {number}\.$") as caught:
        make(name, number)
    assert caught.value.hint.startswith("Give a whole number from 1 to ")


@pytest.mark.parametrize("name", SIZES)
def test_sizes_beyond_any_machine_are_refused(name: str) -> None:
    largest = TOO_LARGE[name] - 1
    assert getattr(make(name, largest), name) == largest
    with pytest.raises(UsageError) as caught:
        make(name, largest + 1)
    assert caught.value.hint.endswith(f"to {largest:,}.")


@pytest.mark.parametrize("task", [Task.FORWARD, Task.TRACE])
def test_only_generating_needs_new_tokens(task: Task) -> None:
    assert Scenario(task=task, num_new_tokens=0).num_new_tokens == 0
    with pytest.raises(UsageError, match="can't be -1"):
        Scenario(task=task, num_new_tokens=-1)


@pytest.mark.parametrize("quantization", [Quantization.NONE, Quantization.INT8])
def test_only_scales_of_4_bit_weights_are_quantized_again(quantization: Quantization) -> None:
    with pytest.raises(UsageError, match="only nf4 and fp4 have scales"):
        Scenario(quantization=quantization, is_double_quantized=True)
    for four_bit in (Quantization.NF4, Quantization.FP4):
        assert Scenario(quantization=four_bit, is_double_quantized=True).is_double_quantized


@given(st.integers(1, 2**20), st.integers(1, 2**20))
def test_the_last_new_token_is_never_in_the_cache(num_prompt: int, num_new: int) -> None:
    scenario = Scenario(num_prompt_tokens=num_prompt, num_new_tokens=num_new)
    assert scenario.num_cached_tokens == num_prompt + num_new - 1


def test_without_new_tokens_the_cache_holds_the_prompt() -> None:
    options: dict[str, Any] = {"num_prompt_tokens": 7, "num_new_tokens": 0}
    assert Scenario(task=Task.FORWARD, **options).num_cached_tokens == 7


def test_only_4_bit_weights_keep_scales_that_are_quantized() -> None:
    double = Scenario(quantization=Quantization.NF4, is_double_quantized=True)
    for quantization, is_double in (
        (Quantization.NONE, False),
        (Quantization.INT8, False),
        (Quantization.FP4, True),
        (Quantization.NF4, True),
    ):
        changed = double.quantized(quantization)
        expected = replace(double, quantization=quantization, is_double_quantized=is_double)
        assert changed == expected
    assert Scenario().quantized(Quantization.NF4).is_double_quantized is False


BOTH = ("num_prompt_tokens", "num_new_tokens")


@pytest.mark.parametrize(
    ("context", "sizes", "expected"),
    [
        (512, BOTH, (256, 256)),
        (2200, BOTH, (1944, 256)),
        (3, BOTH, (2, 1)),
        (2304, BOTH, (2048, 256)),
        (2200, ("num_new_tokens",), (2048, 152)),
        (300, ("num_prompt_tokens",), (44, 256)),
        # Not enough to reduce.
        (1, BOTH, (2048, 256)),
        (2048, ("num_new_tokens",), (2048, 256)),
        (256, ("num_prompt_tokens",), (2048, 256)),
        (512, (), (2048, 256)),
    ],
)
def test_sizes_are_clipped_to_the_context(
    context: int, sizes: tuple[str, ...], expected: tuple[int, int]
) -> None:
    clipped = Scenario(batch_size=3).clip(context, sizes=sizes)
    assert (clipped.num_prompt_tokens, clipped.num_new_tokens) == expected
    assert clipped.batch_size == 3


def test_a_forward_pass_is_clipped_to_the_whole_context() -> None:
    clipped = Scenario(task=Task.FORWARD).clip(512, sizes=BOTH)
    assert (clipped.num_prompt_tokens, clipped.num_new_tokens) == (512, 0)


def test_new_tokens_keep_what_a_short_prompt_leaves_of_the_context() -> None:
    clipped = Scenario(num_prompt_tokens=100, num_new_tokens=5000).clip(1000, sizes=BOTH)
    assert (clipped.num_prompt_tokens, clipped.num_new_tokens) == (100, 900)


@given(
    context=st.integers(1, 5000),
    num_prompt=st.integers(1, 5000),
    num_new=st.integers(1, 5000),
    sizes=st.sets(st.sampled_from(BOTH)),
)
def test_clipping_never_goes_past_the_context_nor_changes_a_size_that_was_given(
    context: int, num_prompt: int, num_new: int, sizes: set[str]
) -> None:
    asked = Scenario(num_prompt_tokens=num_prompt, num_new_tokens=num_new)
    clipped = asked.clip(context, sizes=sizes)
    total = clipped.num_prompt_tokens + clipped.num_new_tokens
    assert clipped == asked or total == context < num_prompt + num_new
    for name in set(BOTH) - sizes:
        assert getattr(clipped, name) == getattr(asked, name)
    if sizes == set(BOTH) and context > 1:
        assert total <= context


def test_sizes_do_not_change_how_a_model_is_loaded() -> None:
    sized = Scenario(batch_size=3, num_prompt_tokens=5, num_new_tokens=7, has_padding=True)
    assert sized.loading == Scenario().loading
    assert Scenario(dtype="float16").loading != Scenario().loading


@pytest.mark.parametrize(
    ("abbreviation", "dtype"),
    [
        ("bf16", Dtype.BFLOAT16),
        ("BF16", Dtype.BFLOAT16),
        ("fp16", Dtype.FLOAT16),
        ("half", Dtype.FLOAT16),
        ("fp32", Dtype.FLOAT32),
    ],
)
def test_dtypes_are_known_by_their_usual_abbreviations(abbreviation: str, dtype: Dtype) -> None:
    assert Scenario(dtype=abbreviation).dtype is dtype
    assert TraceOptions(dtype=abbreviation).dtype is dtype
    assert parse_dtype(abbreviation) is dtype
