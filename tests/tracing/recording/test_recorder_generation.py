"""The recorder around calls of `generate`, with its beams, caches and masks."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel, StaticCache

from moetool import RoutingRecorder
from moetool.anatomy.caches import find_cache_keyword
from moetool.errors import UntraceableError
from moetool.tracing.windows.collect import RoutedSequence, TracedBatch, collect_scopes
from tests.tiny_models import build_model
from tests.tracing.recording.writing import make_sequences

LENGTHS = (3, 7, 1)
SEQUENCES = make_sequences(LENGTHS)
NUM_BEAMS, NUM_NEW_TOKENS = 3, 4
PREPARE = "prepare_inputs_for_generation"


@pytest.fixture
def model() -> PreTrainedModel:
    return build_model("mixtral")


def left_padded(sequences: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(len(sequence) for sequence in sequences)
    rows = [[0] * (width - len(sequence)) + sequence for sequence in sequences]
    ids = torch.tensor(rows)
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def generate(model: PreTrainedModel, **options: Any) -> torch.Tensor:
    plain: Any = model.generate
    defaults = {"max_new_tokens": NUM_NEW_TOKENS, "do_sample": False, "eos_token_id": None}
    written: torch.Tensor = plain(**left_padded(SEQUENCES), **{**defaults, **options})
    return written


def positions_by_call(frame: pd.DataFrame) -> list[list[list[int]]]:
    """Return the positions of each row of each call, in order."""
    return [
        [rows["position"].drop_duplicates().tolist() for _, rows in call.groupby("batch_index")]
        for _, call in frame[frame["layer"] == 0].groupby("call")
    ]


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_every_beam_is_a_row_with_the_positions_of_its_text(
    model: PreTrainedModel, cache: str
) -> None:
    with RoutingRecorder(model) as recorder:
        generate(model, num_beams=NUM_BEAMS, cache_implementation=cache)

    first, *steps = positions_by_call(recorder.to_frame())
    lengths = [length for length in LENGTHS for _ in range(NUM_BEAMS)]
    assert first == [list(range(length)) for length in lengths]
    assert len(steps) == NUM_NEW_TOKENS - 1
    for number, step in enumerate(steps):
        assert step == [[length + number] for length in lengths]


def test_recording_does_not_change_what_is_written(model: PreTrainedModel) -> None:
    for options in ({}, {"num_beams": NUM_BEAMS}, {"cache_implementation": "static"}):
        plain = generate(model, **options)
        with RoutingRecorder(model):
            recorded = generate(model, **options)
        assert torch.equal(plain, recorded)


def collect(model: PreTrainedModel, **options: Any) -> pd.DataFrame:
    """Return the experts of all tokens of `SEQUENCES` and their continuations, as collected."""
    with RoutingRecorder(model) as recorder:
        written = generate(model, **options)[:, max(LENGTHS) :].numpy()
    sequences = [
        RoutedSequence(np.array([*given, *new[:-1]], dtype=np.int32), num_given=len(given))
        for given, new in zip(SEQUENCES, written, strict=True)
    ]
    calls = recorder.take_calls()
    prompts = np.arange(len(SEQUENCES), dtype=np.int32)
    (scope,) = collect_scopes([TracedBatch(prompts, {"": sequences}, calls)])
    columns = {
        f"layer {layer.layer.layer}, choice {choice}": layer.experts[:, choice]
        for layer in scope.layers
        for choice in range(layer.experts.shape[1])
    }
    names = ("prompt", "position", "token_id", "phase")
    frame = pd.DataFrame({**{name: getattr(scope, name) for name in names}, **columns})
    assert len(calls) == NUM_NEW_TOKENS
    return frame


def test_tokens_that_are_fed_again_for_want_of_a_cache_are_collected_once(
    model: PreTrainedModel,
) -> None:
    cached, uncached = collect(model), collect(model, use_cache=False)

    assert len(cached) == sum(LENGTHS) + len(LENGTHS) * (NUM_NEW_TOKENS - 1)
    pd.testing.assert_frame_equal(uncached, cached)


def test_a_token_that_never_passed_is_an_error(model: PreTrainedModel) -> None:
    with RoutingRecorder(model) as recorder:
        generate(model)
    unseen = [RoutedSequence(np.arange(99, dtype=np.int32), num_given=length) for length in LENGTHS]
    batch = TracedBatch(np.arange(3, dtype=np.int32), {"": unseen}, recorder.take_calls())

    with pytest.raises(UntraceableError, match="297 tokens went through the model, but only 20"):
        collect_scopes([batch])


def test_two_recorders_at_once_see_the_same_whatever_the_cache(model: PreTrainedModel) -> None:
    with RoutingRecorder(model) as outer, RoutingRecorder(model) as inner:
        generate(model, cache_implementation="static")

    pd.testing.assert_frame_equal(outer.to_frame(), inner.to_frame())
    assert positions_by_call(outer.to_frame())[0] == [list(range(length)) for length in LENGTHS]


def test_a_mask_of_the_callers_own_is_not_taken_for_the_last_one_of_generate(
    model: PreTrainedModel,
) -> None:
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    for cache in ("dynamic", "static"):
        with RoutingRecorder(model), torch.inference_mode():
            generate(model, cache_implementation=cache)
            with pytest.raises(UntraceableError, match="Can't tell pads from tokens"):
                model(input_ids=torch.tensor([[5, 6, 7]]), attention_mask=mask)


def test_a_mask_that_generate_prepares_from_another_keyword_is_refused(
    model: PreTrainedModel,
) -> None:
    """Read as a mask without pads, it would let the pads of shorter rows be recorded."""
    plain: Any = model.prepare_inputs_for_generation

    def renamed(input_ids: torch.Tensor, *, padding_mask: torch.Tensor, **kwargs: Any) -> Any:
        return plain(input_ids, attention_mask=padding_mask, **kwargs)

    inputs = left_padded(SEQUENCES)
    cache = StaticCache(config=model.config, max_cache_len=16)
    keyword = find_cache_keyword(model.forward)
    model.__dict__[PREPARE] = renamed
    with RoutingRecorder(model):
        prepared = model.__dict__[PREPARE](
            inputs["input_ids"], padding_mask=inputs["attention_mask"], **{str(keyword): cache}
        )
        with pytest.raises(UntraceableError, match="the attention mask is"):
            model(**prepared)


def test_generate_checks_its_arguments_as_it_does_without_a_recorder(
    model: PreTrainedModel,
) -> None:
    signature = inspect.signature(getattr(model, PREPARE))
    with RoutingRecorder(model):
        assert inspect.signature(getattr(model, PREPARE)) == signature
        with pytest.raises(ValueError, match="not used by the model"):
            generate(model, unheard_of=1)
        generate(model)


def test_a_method_of_the_users_own_is_called_and_put_back(model: PreTrainedModel) -> None:
    num_calls = 0
    plain = getattr(model, PREPARE)

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        return plain(*args, **kwargs)

    model.__dict__[PREPARE] = counted
    with RoutingRecorder(model):
        generate(model, cache_implementation="static")

    assert num_calls == NUM_NEW_TOKENS
    assert model.__dict__[PREPARE] is counted


def test_nothing_of_the_recorder_stays_on_the_model(model: PreTrainedModel) -> None:
    with RoutingRecorder(model):
        generate(model, cache_implementation="static")

    assert PREPARE not in model.__dict__
