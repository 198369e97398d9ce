"""Settings for choosing among tokens: those that were asked for apply, and no others."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from moetool.errors import InputError, UntraceableError, UsageError
from moetool.tracing.options import GenerationOptions, choose_generation
from moetool.tracing.prompts.prompts import Prompt
from moetool.tracing.prompts.tokens import TokenizedPrompt, tokenize_prompts
from tests.tiny_models import build_model
from tests.tracing.recording.writing import (
    NUM_NEW_TOKENS,
    generate_plainly,
    make_sequences,
    trace_writing,
)

# All of one length, so that a test can make the same batch.
SEQUENCES = make_sequences((6, 6, 6, 6))
END, PAD = 2, 0

# Settings of a checkpoint about choosing; each would change greedy generation.
OWN_SETTINGS: dict[str, dict[str, Any]] = {
    "sampling": {"do_sample": True, "temperature": 5.0},
    "a penalty on repetition": {"repetition_penalty": 30.0},
    "no bigram twice": {"no_repeat_ngram_size": 1},
    "words never to write": {"bad_words_ids": [[token_id] for token_id in range(3, 250)]},
    "a shorter length": {"max_new_tokens": 2},
    "beams": {"num_beams": 4},
}


@pytest.fixture
def model() -> PreTrainedModel:
    return build_model("mixtral")


@pytest.fixture(scope="module")
def greedy() -> list[list[int]]:
    """The most likely continuation of each of `SEQUENCES`."""
    model = build_model("mixtral")
    return [generate_plainly(model, sequence) for sequence in SEQUENCES]


def sample_plainly(model: PreTrainedModel, *, seed: int, **options: Any) -> list[list[int]]:
    """Return what `generate` samples after a batch of all `SEQUENCES`, by plain arguments."""
    generate: Any = model.generate
    # That of the first batch of the first window.
    digest = hashlib.sha256(f"{seed} 0 0".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little"))
    ids = torch.tensor(SEQUENCES)
    output = generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NUM_NEW_TOKENS,
        do_sample=True,
        **{"temperature": 1.0, "top_k": 0, "top_p": 1.0, **options},
    )
    return [cut_after_end(row) for row in output[:, ids.shape[1] :].tolist()]


def cut_after_end(ids: list[int]) -> list[int]:
    return ids[: ids.index(END) + 1] if END in ids else ids


@pytest.mark.parametrize("what", OWN_SETTINGS)
def test_what_a_checkpoint_says_about_choosing_does_not_leak_into_greedy_writing(
    model: PreTrainedModel, greedy: list[list[int]], what: str
) -> None:
    own = {"max_new_tokens": NUM_NEW_TOKENS, **OWN_SETTINGS[what]}
    model.generation_config = GenerationConfig(eos_token_id=END, pad_token_id=PAD, **own)
    torch.manual_seed(0)
    generate: Any = model.generate
    written = [generate(torch.tensor([ids]))[0, len(ids) :].tolist() for ids in SEQUENCES]
    assert written != greedy  # or else nothing could leak

    assert trace_writing(model, SEQUENCES).continuations == greedy


@pytest.mark.parametrize("own", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-6}])
def test_what_a_checkpoint_says_about_choosing_does_not_leak_into_sampling(
    model: PreTrainedModel, greedy: list[list[int]], own: dict[str, Any]
) -> None:
    expected = sample_plainly(model, seed=3, temperature=2.0)
    model.generation_config = GenerationConfig(
        eos_token_id=END, pad_token_id=PAD, do_sample=True, **own
    )

    traced = trace_writing(model, SEQUENCES, temperature=2.0, seed=3)

    assert traced.continuations == expected != greedy


def test_what_a_checkpoint_says_about_its_tokens_holds(
    model: PreTrainedModel, greedy: list[list[int]]
) -> None:
    first = {ids[0] for ids in greedy}
    model.generation_config.suppress_tokens = sorted(first)

    traced = trace_writing(model, SEQUENCES)

    expected = [generate_plainly(model, ids) for ids in SEQUENCES]
    assert traced.continuations == expected
    assert not first & {token_id for ids in expected for token_id in ids}


@pytest.mark.parametrize(
    "options", [{"temperature": 2.5}, {"top_p": 0.4}, {"temperature": 4.0, "top_p": 0.7}]
)
def test_temperature_and_top_p_sample_as_generate_does(
    model: PreTrainedModel, options: dict[str, Any]
) -> None:
    expected = sample_plainly(model, seed=5, **options)
    assert expected != sample_plainly(model, seed=5)  # or else they would not matter

    assert trace_writing(model, SEQUENCES, seed=5, **options).continuations == expected


def test_a_seed_writes_the_same_again_and_another_one_something_else(
    model: PreTrainedModel,
) -> None:
    first, again, other = (
        trace_writing(model, SEQUENCES, temperature=2.0, seed=seed) for seed in (1, 1, 2)
    )

    assert first.texts == again.texts
    assert first.frame.equals(again.frame)
    assert first.continuations != other.continuations


@pytest.mark.parametrize("is_traced", [True, False], ids=["after a run", "after an error"])
def test_the_models_own_settings_are_put_back(model: PreTrainedModel, is_traced: bool) -> None:
    own = model.generation_config
    before = own.to_dict()

    if is_traced:
        trace_writing(model, SEQUENCES, temperature=2.0, top_p=0.9)
    else:
        with pytest.raises(IndexError):
            trace_writing(model, [[10_000]])  # no such token

    assert model.generation_config is own
    assert own.to_dict() == before


BAD_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "temperature of nothing": ({"temperature": 0.0}, "The temperature can't be 0.0."),
    "negative temperature": ({"temperature": -1.0}, "The temperature can't be -1.0."),
    "temperature of no number": ({"temperature": math.nan}, "The temperature can't be nan."),
    "temperature without bounds": ({"temperature": math.inf}, "The temperature can't be inf."),
    "temperature too low for float32": ({"temperature": 1e-40}, "The temperature can't be 1e-40."),
    "top-p of nothing": ({"top_p": 0.0}, "The top-p can't be 0.0."),
    "top-p beyond one": ({"top_p": 1.5}, "The top-p can't be 1.5."),
    "top-p of no number": ({"top_p": math.nan}, "The top-p can't be nan."),
    "negative seed": ({"seed": -1, "temperature": 1.0}, "The seed can't be -1."),
    "seed of 65 bits": (
        {"seed": 1 << 64, "temperature": 1.0},
        "The seed can't be 18446744073709551616.",
    ),
    "temperature for nothing": (
        {"temperature": 1.0, "max_new_tokens": None},
        "Temperature has no effect",
    ),
    "top-p and seed for nothing": (
        {"top_p": 0.9, "seed": 1, "max_new_tokens": None},
        "Top-p and seed have no effect",
    ),
    "cache for nothing": ({"cache": "static", "max_new_tokens": None}, "Cache has no effect"),
}


def choose(**options: Any) -> GenerationOptions | None:
    defaults = {"max_new_tokens": 4, "temperature": None, "top_p": None, "seed": 0}
    return choose_generation(**{**defaults, "cache": "dynamic", **options})


@pytest.mark.parametrize("what", BAD_OPTIONS)
def test_options_that_cannot_be_carried_out_are_refused(what: str) -> None:
    options, message = BAD_OPTIONS[what]

    with pytest.raises(UsageError) as caught:
        choose(**options)

    assert message in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1e-6},
        {"temperature": 1e30, "top_p": 1.0, "seed": (1 << 64) - 1},
        {"top_p": 1e-12, "seed": 0, "cache": "static"},
    ],
)
def test_options_at_their_limits_can_be_carried_out(
    model: PreTrainedModel, options: dict[str, Any]
) -> None:
    chosen = choose(**options)

    assert chosen is not None
    assert not chosen.is_greedy
    traced = trace_writing(model, SEQUENCES, **options)
    assert all(traced.continuations)


@pytest.mark.parametrize("name", ["pad_token_id", "max_new_tokens", "disable_compile"])
def test_a_setting_that_transformers_no_longer_has_is_not_passed_over_in_silence(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make: Any = GenerationConfig.__init__

    def make_without(self: GenerationConfig, **settings: Any) -> None:
        make(self, **settings)
        if not settings:
            del vars(self)[name]

    monkeypatch.setattr(GenerationConfig, "__init__", make_without)
    with pytest.raises(UntraceableError, match=f"has no generation setting '{name}'"):
        trace_writing(model, SEQUENCES)


@pytest.mark.parametrize("options", [{"temperature": 1e-6}, {"top_p": 1e-12}])
def test_as_little_temperature_or_mass_as_can_be_is_greedy(
    model: PreTrainedModel, greedy: list[list[int]], options: dict[str, Any]
) -> None:
    assert trace_writing(model, SEQUENCES, **options).continuations == greedy


def test_without_options_nothing_is_written() -> None:
    assert choose(max_new_tokens=None) is None


def test_what_is_to_be_written_must_fit_into_the_context_with_its_prompt() -> None:
    backend = Tokenizer(models.WordLevel({"a": 3}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    prompt = Prompt(prompt_id="1", domain="prose", text="a a a", origin="a.jsonl:1")

    def tokenize(max_new_tokens: int) -> list[TokenizedPrompt]:
        return tokenize_prompts(
            [prompt],
            tokenizer,
            special_tokens="none",
            context_tokens=8,
            max_new_tokens=max_new_tokens,
        )

    assert len(tokenize(5)) == 1
    with pytest.raises(InputError, match=r"a.jsonl:1: .* 3 tokens and 6 new ones; .* holds 8"):
        tokenize(6)
    with pytest.raises(UsageError, match="8 new tokens leave no room"):
        tokenize(8)
