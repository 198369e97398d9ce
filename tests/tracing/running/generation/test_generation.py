"""Generated tokens are traced like those of prompts: each once, except the last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import transformers
from packaging.version import Version
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

from moetool.errors import UsageError
from moetool.tracing.options import GenerationOptions
from tests.families.tiny.models import build_family
from tests.tiny_models import build_model
from tests.tracing.recording.writing import (
    BATCHES,
    LENGTHS,
    NUM_NEW_TOKENS,
    NumberTokenizer,
    Traced,
    assert_same_decisions,
    choose_ends,
    cut_after,
    expect_tokens,
    generate_plainly,
    make_sequences,
    trace,
    trace_writing,
)

SEQUENCES = make_sequences()
# In older transformers Switch's router does not return its scores.
PROBABLE = ["mixtral"]
if Version(transformers.__version__) >= Version("5.23"):
    PROBABLE.append("switch_transformers")


@pytest.fixture(scope="module", params=["mixtral", "deepseek_v3", "gpt_oss"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build_model(request.param)


@pytest.fixture(scope="module")
def traced(model: PreTrainedModel) -> Traced:
    return trace_writing(model, SEQUENCES)


@pytest.fixture
def mixtral() -> PreTrainedModel:
    return build_model("mixtral")


@pytest.fixture(scope="module")
def mixtral_writes() -> list[list[int]]:
    """The continuation of each of `SEQUENCES`, up to the model's end token."""
    model = build_model("mixtral")
    return [generate_plainly(model, sequence) for sequence in SEQUENCES]


@pytest.fixture
def small_windows() -> Iterator[None]:
    """Make windows so small that eight prompts fill several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moetool.tracing.running.batches.BATCHES_PER_WINDOW", 2)
        patch.setattr("moetool.tracing.running.batches.TOKENS_PER_WINDOW", 20)
        yield


def expect_all_tokens(written: list[list[int]], *, stack: str = "decoder") -> pd.DataFrame:
    """Return the tokens of `SEQUENCES` and their continuations that a decoder-only model routes."""
    return pd.concat(
        [
            expect_tokens(given, ids, prompt_id=str(number), stack=stack)
            for number, (given, ids) in enumerate(zip(SEQUENCES, written, strict=True))
        ],
        ignore_index=True,
    )


def test_tokens_are_those_that_generate_writes_after_each_prompt_alone(
    model: PreTrainedModel, traced: Traced
) -> None:
    written = [generate_plainly(model, sequence) for sequence in SEQUENCES]
    expected = expect_all_tokens(written)

    assert traced.continuations == written
    pd.testing.assert_frame_equal(traced.tokens, expected, check_dtype=False)
    assert (traced.frame["token"] == traced.frame["token_id"].astype(str)).all()


def test_the_figures_count_what_was_routed_and_what_was_written(traced: Traced) -> None:
    num_written = sum(len(ids) for ids in traced.continuations)
    num_routed = sum(LENGTHS) + num_written - len(SEQUENCES)
    metadata = traced.run.metadata

    assert metadata.num_new_tokens == num_written
    assert metadata.num_tokens == len(traced.tokens) == num_routed
    assert metadata.num_decisions == num_routed * len(metadata.layers)
    assert traced.run.num_rows == len(traced.frame)
    assert traced.num_advanced == sum(LENGTHS) + len(LENGTHS) * NUM_NEW_TOKENS


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_batch_size_leaves_no_mark_and_neither_do_left_pads(
    model: PreTrainedModel, traced: Traced, batch_size: int
) -> None:
    other = trace_writing(model, SEQUENCES, batch_size=batch_size)

    assert other.texts == traced.texts
    pd.testing.assert_frame_equal(other.tokens, traced.tokens)
    assert_same_decisions(other.frame, traced.frame)


@pytest.mark.parametrize(
    ("kind", "cache_class"), [("dynamic", DynamicCache), ("static", StaticCache)]
)
def test_both_caches_give_the_same_rows(
    model: PreTrainedModel, traced: Traced, kind: str, cache_class: type[Cache]
) -> None:
    seen: set[type] = set()

    def see(_model: object, _args: object, inputs: dict[str, Any]) -> None:
        seen.update(type(value) for value in inputs.values() if isinstance(value, Cache))

    handle = model.register_forward_pre_hook(see, with_kwargs=True)
    other = trace_writing(model, SEQUENCES, cache=kind)
    handle.remove()

    assert seen == {cache_class}
    assert other.texts == traced.texts
    pd.testing.assert_frame_equal(other.tokens, traced.tokens)
    assert_same_decisions(other.frame, traced.frame)


def test_reading_alone_gives_the_prefill_rows_of_writing(
    model: PreTrainedModel, traced: Traced
) -> None:
    read = trace(model, SEQUENCES, None)

    assert set(read.frame["phase"]) == {"prefill"}
    assert_same_decisions(read.frame, traced.frame[traced.frame["phase"] == "prefill"])


@pytest.mark.parametrize(("batch_size", "cache"), BATCHES)
def test_a_row_that_has_ended_gets_no_more_rows(
    mixtral: PreTrainedModel, mixtral_writes: list[list[int]], batch_size: int, cache: str
) -> None:
    ends = choose_ends(mixtral_writes)
    written = [cut_after(ids, ends) for ids in mixtral_writes]
    mixtral.generation_config.eos_token_id = sorted(ends)

    traced = trace_writing(mixtral, SEQUENCES, batch_size=batch_size, cache=cache)

    assert traced.continuations == written
    pd.testing.assert_frame_equal(traced.tokens, expect_all_tokens(written), check_dtype=False)
    for text, ids in zip(traced.texts, written, strict=True):
        assert text.num_new_tokens == len(ids)
        assert text.finish == ("end" if ids[-1] in ends else "length")
    assert traced.run.metadata.num_new_tokens == sum(len(ids) for ids in written)


def test_an_end_token_is_taken_from_the_tokenizer_where_the_model_names_none(
    mixtral: PreTrainedModel, mixtral_writes: list[list[int]]
) -> None:
    mixtral.generation_config.eos_token_id = None
    end = mixtral_writes[1][2]

    traced = trace_writing(mixtral, SEQUENCES, tokenizer=NumberTokenizer(eos_token_id=end))

    assert traced.continuations == [cut_after(ids, {end}) for ids in mixtral_writes]
    assert traced.texts[1].finish == "end"


@pytest.mark.parametrize("do_rows_end", [True, False], ids=["at the end token", "at one token"])
def test_nothing_is_decoded_where_every_row_has_one_token(
    mixtral: PreTrainedModel, mixtral_writes: list[list[int]], do_rows_end: bool
) -> None:
    first = [ids[0] for ids in mixtral_writes]
    if do_rows_end:
        mixtral.generation_config.eos_token_id = sorted(set(first))

    traced = trace_writing(mixtral, SEQUENCES, max_new_tokens=NUM_NEW_TOKENS if do_rows_end else 1)

    assert set(traced.frame["phase"]) == {"prefill"}
    assert len(traced.tokens) == sum(LENGTHS)
    assert traced.continuations == [[token_id] for token_id in first]
    assert {text.finish for text in traced.texts} == {"end" if do_rows_end else "length"}


def test_pads_that_a_row_writes_as_tokens_of_its_own_are_tokens(
    mixtral: PreTrainedModel, mixtral_writes: list[list[int]]
) -> None:
    pad = mixtral_writes[1][2]
    mixtral.generation_config.pad_token_id = pad

    traced = trace_writing(mixtral, SEQUENCES, tokenizer=NumberTokenizer(pad_token_id=pad))

    expected = expect_all_tokens(mixtral_writes)
    pd.testing.assert_frame_equal(traced.tokens, expected, check_dtype=False)


def test_neither_model_nor_tokenizer_needs_a_pad_token(mixtral: PreTrainedModel) -> None:
    expected = trace_writing(mixtral, SEQUENCES)
    mixtral.generation_config.pad_token_id = None

    traced = trace_writing(mixtral, SEQUENCES, tokenizer=NumberTokenizer(pad_token_id=None))

    assert_same_decisions(traced.frame, expected.frame)


@pytest.mark.usefixtures("small_windows")
def test_windows_leave_no_mark(mixtral: PreTrainedModel, mixtral_writes: list[list[int]]) -> None:
    traced = trace_writing(mixtral, SEQUENCES, batch_size=2)

    assert traced.num_windows > 2
    assert traced.continuations == mixtral_writes
    assert traced.run.num_rows == len(traced.frame)
    assert traced.run.metadata.num_tokens == len(traced.tokens)
    assert traced.run.metadata.num_new_tokens == sum(len(ids) for ids in mixtral_writes)
    expected = expect_all_tokens(mixtral_writes)
    pd.testing.assert_frame_equal(traced.tokens, expected, check_dtype=False)


def test_only_the_layers_asked_for_are_traced(mixtral: PreTrainedModel) -> None:
    whole = trace_writing(mixtral, SEQUENCES)
    generation = GenerationOptions(max_new_tokens=NUM_NEW_TOKENS)

    some = trace(mixtral, SEQUENCES, generation, layers=[0, 2])

    assert some.texts == whole.texts
    assert_same_decisions(some.frame, whole.frame[whole.frame["layer"] != 1])


@pytest.mark.parametrize("family", PROBABLE)
def test_probabilities_explain_the_choice_of_written_tokens_too(family: str) -> None:
    generation = GenerationOptions(max_new_tokens=NUM_NEW_TOKENS)
    traced = trace(build_family(family), SEQUENCES, generation, with_probabilities=True)
    key = ["prompt_id", "stack", "layer", "position"]
    first = traced.frame[traced.frame["rank"] == 0]

    assert len(traced.probabilities) == traced.run.metadata.num_decisions
    both = first.merge(traced.probabilities, on=key, validate="one_to_one")
    assert len(both) == len(first)
    assert set(both["phase"]) == {"prefill", "decode"}
    probabilities = np.array(both["probabilities"].tolist(), dtype=float)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=4e-3)
    chosen = both["expert"].to_numpy()
    ran = chosen >= 0
    assert (probabilities.argmax(axis=1)[ran] == chosen[ran]).mean() > 0.99  # ties in float16


def test_a_cache_that_a_model_does_not_have_is_refused() -> None:
    """DeepSeek-V4 has layers without a static cache; MiniMax would silently use its own."""
    for family in ("deepseek_v4", "minimax"):
        with pytest.raises(UsageError, match="no static cache"):
            trace_writing(build_family(family), SEQUENCES, cache="static")
