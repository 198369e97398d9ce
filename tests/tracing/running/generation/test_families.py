"""New tokens have the decisions of reading them, in every family that generates text.

What is written in a left-padded batch with a cache is read again one by one, without any of these.
In float32 the two agree up to the rounding of weights, wherever a family computes the same thing
both ways; where it does not, the table below says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from transformers import PreTrainedModel

from moetool.errors import UsageError
from moetool.tracing.options import GenerationOptions
from moetool.tracing.running.generation import check_can_generate
from tests.families.tiny.families import FAMILIES
from tests.families.tiny.models import available, build_family
from tests.families.tiny.proof import unread_families
from tests.tracing.recording.writing import (
    KEY,
    Traced,
    assert_same_decisions,
    make_sequences,
    read_plainly,
    trace,
)

# With two index heads most scores are exactly zero, and chance decides which of the tied tokens are
# attended to. More heads leave no ties.
_MANY_HEADS = {"index_n_heads": 16}

# Configuration fields with which reading and generating compute the same thing.
COMPARABLE: Mapping[str, dict[str, Any]] = {
    "axk2": _MANY_HEADS,
    "deepseek_v32": _MANY_HEADS,
    "dots3_note": {"text_config": _MANY_HEADS},
    "dots3_note_text": _MANY_HEADS,
    "glm_moe_dsa": _MANY_HEADS,
    "hy_v4": _MANY_HEADS,
    "hy_v4_vl": {"text_config": _MANY_HEADS},
    "mistral_large4": {"text_config": _MANY_HEADS},
    # Its cache keeps to the window exactly, its attention does not.
    "qwen3_omni_moe_thinker": {"text_config": {"sliding_window": None}},
    # Tokens of one call compete for an expert's capacity: with this much, none is dropped.
    "switch_transformers": {"expert_capacity": 64, "tie_word_embeddings": False},
    "nllb-moe": {"tie_word_embeddings": False},
}

# Tokens of one call mix: Doge scores a token with the router's outputs for others.
NOT_COMPARABLE = ("doge",)

# Parts of larger models, classifiers, and models that generate blockwise.
SILENT = (
    "deepseek_ocr2_text",
    "diffusion_gemma",
    "openai_privacy_filter",
    "qwen3_omni_moe_talker_text",
    "unlimited_ocr_text",
)

# Families with special caches: sliding, indexed, linear, convolutional and hybrid.
STATIC = ("bailing_hybrid", "deepseek_v32", "gemma4_text", "gpt_oss", "jamba", "lfm2_moe")

# Sampled at a high temperature, so that no row repeats one token, and with a seed that draws no pad:
# NLLB counts positions without pads.
SAMPLED = GenerationOptions(max_new_tokens=5, temperature=3.0, seed=2)
# One outgrows the sliding windows of 16 tokens while text is generated; the other is one token.
SEQUENCES = make_sequences((15, 1))


def some_of(names: Iterable[str]) -> list[str]:
    """Return those families that the installed transformers has, and that are traced."""
    return [name for name in names if name in set(available()) - unread_families()]


def test_the_tables_name_families_that_there_are() -> None:
    """Only the newest transformers has all of them."""
    assert {*COMPARABLE, *NOT_COMPARABLE, *SILENT, *STATIC} <= set(FAMILIES)


@pytest.mark.parametrize("name", some_of(sorted({*FAMILIES} - {*SILENT, *NOT_COMPARABLE})))
def test_a_written_tokens_decisions_are_those_of_reading_it(name: str) -> None:
    model = build_family(name, **COMPARABLE.get(name, {}))

    traced = trace(model, SEQUENCES, SAMPLED)

    assert set(traced.frame["phase"]) == {"prefill", "decode"}
    assert_same_decisions(traced.frame, read_again(model, traced))


@pytest.mark.parametrize("name", some_of(STATIC))
def test_so_they_are_with_a_static_cache(name: str) -> None:
    model = build_family(name, **COMPARABLE.get(name, {}))

    traced = trace(model, SEQUENCES, replace(SAMPLED, cache="static"))

    assert_same_decisions(traced.frame, read_again(model, traced))


def test_where_tokens_mix_the_same_tokens_are_traced_with_other_decisions() -> None:
    for name in some_of(NOT_COMPARABLE):
        model = build_family(name)

        traced = trace(model, SEQUENCES, SAMPLED)

        written, read = (
            frame.sort_values(KEY).reset_index(drop=True)
            for frame in (traced.frame, read_again(model, traced))
        )
        pd.testing.assert_frame_equal(written[KEY], read[KEY], check_dtype=False)
        assert not written["expert"].equals(read["expert"])


def read_again(model: PreTrainedModel, traced: Traced) -> pd.DataFrame:
    """Return what the recorder sees of all routed tokens when texts are read one at a time."""
    written = [ids[:-1] for ids in traced.continuations]
    if model.config.is_encoder_decoder:
        starts = traced.tokens.query("stack == 'decoder' and position == 0")["token_id"]
        decoded = [[int(start), *ids] for start, ids in zip(starts, written, strict=True)]
        return read_plainly(model, SEQUENCES, decoded=decoded)
    return read_plainly(
        model, [[*given, *ids] for given, ids in zip(SEQUENCES, written, strict=True)]
    )


@pytest.mark.parametrize("name", some_of(SILENT))
def test_a_model_that_does_not_write_token_by_token_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="does not generate text token by token"):
        check_can_generate(build_family(name))
