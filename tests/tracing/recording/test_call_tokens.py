"""The tokens of a call, found from caches and masks under any name, or refused."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    DynamicCache,
    EncoderDecoderCache,
    PreTrainedConfig,
    PreTrainedModel,
    StaticCache,
)
from transformers.modeling_outputs import BaseModelOutputWithPast

from moetool import RoutingRecorder
from moetool.anatomy.caches import find_cache_keyword, find_caches, looks_like_cache, name_fields
from moetool.errors import UntraceableError
from moetool.tracing.recording.call_tokens import CallInputs, CallTokens, name_inputs
from tests.tiny_models import build_model

NUM_CACHED, NUM_ROWS = 6, 2
GENERATOR = torch.Generator().manual_seed(4)
PROMPT = torch.randint(3, 250, (NUM_ROWS, NUM_CACHED), generator=GENERATOR)
STEP = torch.randint(3, 250, (NUM_ROWS, 1), generator=GENERATOR)


@pytest.fixture(scope="module")
def mixtral() -> PreTrainedModel:
    return build_model("mixtral")


class Renamed(nn.Module):
    """A model that has other names for its cache and its mask than transformers."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, memory: Any = None, padding_mask: Any = None
    ) -> torch.Tensor:
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": padding_mask}
        if memory is not None:
            inputs[str(find_cache_keyword(self.model.forward))] = memory
        output: torch.Tensor = self.model(**inputs).logits
        return output


def fill_cache(model: PreTrainedModel, tokens: torch.Tensor = PROMPT) -> Any:
    with torch.inference_mode():
        output = model(input_ids=tokens, use_cache=True)
    (cache,) = find_caches(name_fields(output)).values()
    return cache


def record(model: nn.Module, **inputs: Any) -> pd.DataFrame:
    with RoutingRecorder(model) as recorder, torch.inference_mode():
        model(**inputs)
    return recorder.to_frame()


def locate_tokens(inputs: Mapping[str, Any]) -> CallTokens:
    return CallInputs(inputs).tokens


def positions_of(tokens: CallTokens) -> list[int]:
    return [int(position) for position in tokens.position]


def test_positions_continue_from_a_cache_under_any_keyword(mixtral: PreTrainedModel) -> None:
    cache = fill_cache(mixtral)
    assert isinstance(cache, DynamicCache)

    frame = record(Renamed(mixtral), input_ids=STEP, memory=cache)

    assert set(frame["position"]) == {NUM_CACHED}


@pytest.mark.parametrize("name", ["cache", "past_key_values", "cache_params", "memory"])
def test_every_kind_of_transformers_cache_is_counted_under_every_name(name: str) -> None:
    keys = torch.ones(NUM_ROWS, 2, NUM_CACHED, 4)
    dynamic = DynamicCache()
    dynamic.update(keys, keys, 0)
    static = StaticCache(config=make_config("mixtral"), max_cache_len=16)
    static.update(keys, keys, 0)
    for cache in (dynamic, static, EncoderDecoderCache(dynamic, DynamicCache())):
        assert positions_of(locate_tokens({"input_ids": STEP, name: cache})) == [NUM_CACHED] * 2
    for empty in (None, DynamicCache(), EncoderDecoderCache(DynamicCache(), DynamicCache())):
        assert positions_of(locate_tokens({"input_ids": STEP, name: empty})) == [0, 0]


class _RecurrentState:
    """The cache of a custom state-space model."""


PAIR = (torch.ones(NUM_ROWS, 2, NUM_CACHED, 4), torch.ones(NUM_ROWS, 2, NUM_CACHED, 4))
UNKNOWN_CACHES: dict[str, Any] = {
    "past_key_values": (PAIR, PAIR),
    "cache": {"keys": PAIR[0]},
    "layer_past": [PAIR],
    "kv": PAIR[0],
    "mems": [PAIR[0]],
    "state": _RecurrentState(),
    "remembered": type("RingCache", (), {})(),
}


@pytest.mark.parametrize("name", UNKNOWN_CACHES)
def test_what_looks_like_a_cache_and_cannot_be_counted_needs_a_mask(name: str) -> None:
    inputs = {"input_ids": STEP, name: UNKNOWN_CACHES[name]}

    with pytest.raises(UntraceableError, match="number of tokens before a call is unknown"):
        locate_tokens(inputs)
    with pytest.raises(
        UntraceableError, match="is 1 wide but must cover 1 token after an unknown number"
    ):
        locate_tokens({**inputs, "attention_mask": torch.ones(NUM_ROWS, 1)})

    mask = torch.ones(NUM_ROWS, NUM_CACHED + 1)
    assert positions_of(locate_tokens({**inputs, "attention_mask": mask})) == [NUM_CACHED] * 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_cache", True),
        ("cache_implementation", "static"),
        ("cache_position", torch.arange(3)),
        ("past_key_values", None),
        ("past_key_values", ()),
        ("cache_params", None),
        ("encoder_hidden_states", PAIR[0]),
        ("inputs_embeds", PAIR[0]),
        ("output_hidden_states", True),
        ("encoder_outputs", BaseModelOutputWithPast(last_hidden_state=PAIR[0])),
    ],
)
def test_what_is_no_cache_is_not_taken_for_one(name: str, value: object) -> None:
    assert not looks_like_cache(name, value)


def test_a_cache_of_states_alone_is_known_to_be_empty_or_needs_a_mask() -> None:
    cache = DynamicCache(config=make_config("mamba2"))
    with pytest.raises(ValueError, match="LinearAttention"):
        cache.get_seq_length()
    assert positions_of(locate_tokens({"input_ids": STEP, "cache": cache})) == [0, 0]

    cache.update_recurrent_state(torch.ones(1, 2, 3), 0)

    with pytest.raises(UntraceableError, match="number of tokens before a call is unknown"):
        locate_tokens({"input_ids": STEP, "cache": cache})


def test_a_mask_of_the_step_alone_is_refused(mixtral: PreTrainedModel) -> None:
    """Models read a mask from the first cached token, so this one would hide the step."""
    inputs = find_inputs(mixtral, fill_cache(mixtral))
    with pytest.raises(UntraceableError, match="is 1 wide but must cover 1 token after 6"):
        record(mixtral, input_ids=STEP, attention_mask=torch.ones(NUM_ROWS, 1), **inputs)


def test_a_mask_that_is_too_long_is_read_as_the_model_reads_it(mixtral: PreTrainedModel) -> None:
    mask = torch.ones(NUM_ROWS, NUM_CACHED, dtype=torch.long)
    mask[0, :2] = 0
    longer = nn.functional.pad(mask, (0, 3), value=1)
    with torch.inference_mode():
        plain = mixtral(input_ids=PROMPT, attention_mask=mask).logits
        assert torch.equal(mixtral(input_ids=PROMPT, attention_mask=longer).logits, plain)

    exact, found = (record(mixtral, input_ids=PROMPT, attention_mask=one) for one in (mask, longer))

    pd.testing.assert_frame_equal(found, exact)
    assert len(exact) == int(mask.sum()) * 3 * 2  # layers, top-k


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.bfloat16]
)
def test_ones_and_zeros_of_every_type_are_read(dtype: torch.dtype) -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]]).to(dtype)
    tokens = locate_tokens({"input_ids": PROMPT[:, :4], "attention_mask": mask})
    assert tokens.slots.tolist() == [2, 3, 4, 5, 6]
    assert positions_of(tokens) == [0, 1, 0, 1, 2]


ADDITIVE = torch.tensor([[0.0, 0, 0, 0, -torch.inf, -torch.inf]])
OTHER_MASKS = {
    "additive": ADDITIVE,
    "half": ADDITIVE.half(),
    "inverted": torch.tensor([[0.0, 0, 0, 0, 1, 1]]) * torch.finfo(torch.float32).min,
    "numbers of texts": torch.tensor([[1, 1, 1, 2, 2, 2]]),
    "not a number": torch.tensor([[1.0, 1, 1, torch.nan, 0, 0]]),
}


@pytest.mark.parametrize("kind", OTHER_MASKS)
def test_a_mask_of_other_numbers_is_refused(mixtral: PreTrainedModel, kind: str) -> None:
    with pytest.raises(UntraceableError, match="the attention mask holds ") as raised:
        record(mixtral, input_ids=PROMPT[:1], attention_mask=OTHER_MASKS[kind])
    assert "mask of ones and zeros" in str(raised.value.hint)


def test_a_mask_of_fewer_rows_is_refused() -> None:
    with pytest.raises(UntraceableError, match=r"the attention mask is \(1, 6\)"):
        locate_tokens({"input_ids": PROMPT, "attention_mask": torch.ones(1, NUM_CACHED)})


def test_a_mask_under_another_name_is_refused(mixtral: PreTrainedModel) -> None:
    mask = torch.ones_like(PROMPT)
    mask[0, :2] = 0
    with pytest.raises(UntraceableError, match="called with padding_mask and without"):
        record(Renamed(mixtral), input_ids=PROMPT, padding_mask=mask)


@pytest.mark.parametrize("name", ["encoder_attention_mask", "pixel_attention_mask", "head_mask"])
def test_masks_of_other_things_are_left_alone(name: str) -> None:
    inputs = {"input_ids": PROMPT, name: torch.zeros(NUM_ROWS, 3)}
    assert positions_of(locate_tokens(inputs)) == [*range(NUM_CACHED)] * 2


def test_the_earlier_name_of_a_cache_is_understood(mixtral: PreTrainedModel) -> None:
    """transformers 5.24 renames the keyword behind its signature."""
    cache = fill_cache(mixtral)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        frame = record(mixtral, input_ids=STEP, past_key_values=cache)
    assert set(frame["position"]) == {NUM_CACHED}


def test_a_keyword_that_the_signature_lacks_is_kept() -> None:
    class Narrow(nn.Module):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return input_ids

    cache = DynamicCache()
    assert name_inputs(Narrow(), (STEP,), {"cache": cache}) == {"input_ids": STEP, "cache": cache}


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0)])
def test_an_empty_batch_is_refused_in_a_sentence(
    mixtral: PreTrainedModel, shape: tuple[int, int]
) -> None:
    with pytest.raises(UntraceableError, match=f"an empty batch: {shape[0]} rows of {shape[1]}"):
        record(mixtral, input_ids=torch.zeros(shape, dtype=torch.long))


def test_a_batch_of_pads_alone_has_no_rows(mixtral: PreTrainedModel) -> None:
    frame = record(mixtral, input_ids=PROMPT, attention_mask=torch.zeros_like(PROMPT))
    assert frame.empty
    assert list(frame.columns) == list(record(mixtral, input_ids=PROMPT).columns)


def make_config(model_type: str) -> PreTrainedConfig:
    make: Any = CONFIG_MAPPING[model_type]
    config: PreTrainedConfig = make(num_hidden_layers=1)
    return config


def find_inputs(model: PreTrainedModel, cache: Any) -> dict[str, Any]:
    return {str(find_cache_keyword(model.forward)): cache}
