"""Prompts as the model reads them: special tokens, truncation and the context's limit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase, SwitchTransformersConfig

from moetool.checkpoint.config import load_config, load_tokenizer
from moetool.checkpoint.files import Checkpoint
from moetool.errors import InputError, UsageError
from moetool.tracing.prompts.encoding import SpecialTokens
from moetool.tracing.prompts.prompts import Prompt
from moetool.tracing.prompts.tokens import (
    TokenizedPrompt,
    choose_pad,
    read_context_tokens,
    spell_tokens,
    tokenize_prompts,
)

CONTEXT = 512
TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture(scope="module")
def checkpoint(demo: Path) -> Checkpoint:
    return Checkpoint(name="demo", folder=demo, revision=None)


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    return load_tokenizer(checkpoint, trust_remote_code=False)


def make_prompt(text: str, *, prompt_id: str = "1") -> Prompt:
    return Prompt(prompt_id=prompt_id, domain="prose", text=text, origin=f"a.jsonl:{prompt_id}")


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    *texts: str,
    special_tokens: SpecialTokens = "tokenizer",
    context_tokens: int | None = CONTEXT,
    max_prompt_tokens: int | None = None,
) -> list[TokenizedPrompt]:
    return tokenize_prompts(
        [make_prompt(text, prompt_id=str(index)) for index, text in enumerate(texts, start=1)],
        tokenizer,
        special_tokens=special_tokens,
        context_tokens=context_tokens,
        max_prompt_tokens=max_prompt_tokens,
    )


def test_tokens_spell_the_text_they_were_made_of(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ("Once upon a time", "größer 🙂", "x = 1\n\ty")
    for prompt in tokenize(tokenizer, *texts, special_tokens="none"):
        assert tokenizer.decode(prompt.token_ids.tolist()) == prompt.prompt.text
        assert prompt.token_ids.dtype == np.int32
        assert not prompt.was_cut


def test_prompts_keep_their_order(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ("short", "a much longer text", "mid size")
    assert [prompt.prompt.text for prompt in tokenize(tokenizer, *texts)] == list(texts)


def test_special_tokens_come_from_the_tokenizer_or_not_at_all(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    (with_special,) = tokenize(tokenizer, "Hello")
    (without,) = tokenize(tokenizer, "Hello", special_tokens="none")
    assert with_special.token_ids.tolist() == [tokenizer.bos_token_id, *without.token_ids.tolist()]
    assert not set(without.token_ids.tolist()) & set(tokenizer.all_special_ids)


def test_a_long_prompt_is_cut_and_says_so(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "one two three four five"
    (whole,) = tokenize(tokenizer, text)
    (cut,) = tokenize(tokenizer, text, max_prompt_tokens=3)
    assert len(whole.token_ids) > 3
    assert cut.token_ids.tolist() == whole.token_ids[:3].tolist()
    assert cut.was_cut


def test_a_prompt_of_just_the_limit_is_not_cut(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "one two three four five"
    (whole,) = tokenize(tokenizer, text)
    (kept,) = tokenize(tokenizer, text, max_prompt_tokens=len(whole.token_ids))
    assert kept.token_ids.tolist() == whole.token_ids.tolist()
    assert not kept.was_cut


def test_a_prompt_beyond_the_context_is_refused_with_its_place_and_length(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    with pytest.raises(InputError) as caught:
        tokenize(tokenizer, "fits", "1 " * 2000)
    (long,) = tokenize(tokenizer, "1 " * 2000, context_tokens=None)
    assert caught.value.message == (
        f"a.jsonl:2: prompt '2' has {len(long.token_ids):,} tokens; the model's context holds 512."
    )
    assert "--max-prompt-tokens 512" in caught.value.hint


def test_the_context_may_be_filled_to_the_last_token(tokenizer: PreTrainedTokenizerBase) -> None:
    (prompt,) = tokenize(tokenizer, "one two three four five")
    num_tokens = len(prompt.token_ids)
    (same,) = tokenize(tokenizer, prompt.prompt.text, context_tokens=num_tokens)
    assert len(same.token_ids) == num_tokens
    with pytest.raises(InputError, match="context holds"):
        tokenize(tokenizer, prompt.prompt.text, context_tokens=num_tokens - 1)


def test_a_cut_prompt_fits_the_context(tokenizer: PreTrainedTokenizerBase) -> None:
    (prompt,) = tokenize(tokenizer, "1 " * 2000, max_prompt_tokens=CONTEXT)
    assert len(prompt.token_ids) == CONTEXT
    assert prompt.was_cut


def test_a_limit_beyond_the_context_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UsageError, match="limit of 513 tokens for prompts exceeds"):
        tokenize(tokenizer, "fits", max_prompt_tokens=CONTEXT + 1)


def test_without_a_known_context_nothing_is_too_long(tokenizer: PreTrainedTokenizerBase) -> None:
    (prompt,) = tokenize(tokenizer, "1 " * 2000, context_tokens=None, max_prompt_tokens=1000)
    assert len(prompt.token_ids) == 1000


def test_the_context_is_what_the_configuration_says(checkpoint: Checkpoint) -> None:
    assert read_context_tokens(load_config(checkpoint, trust_remote_code=False)) == CONTEXT


def test_a_configuration_that_says_nothing_has_no_context() -> None:
    assert read_context_tokens(SwitchTransformersConfig()) is None


def test_a_prompt_without_tokens_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InputError, match=r"a.jsonl:1: prompt '1' has no tokens"):
        tokenize(tokenizer, "", special_tokens="none")


def test_a_chat_without_a_template_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InputError, match="no chat template") as caught:
        tokenize(tokenizer, "Hello", special_tokens="chat template")
    assert "--chat" in caught.value.hint


def test_a_chat_template_makes_the_prompt_a_users_message(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    (prompt,) = tokenize(tokenizer, "Hello", special_tokens="chat template")
    assert tokenizer.decode(prompt.token_ids.tolist()) == "[user] Hello\n[assistant] "


def test_a_chat_is_held_to_the_context_as_well(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    (bare,) = tokenize(tokenizer, "Hello", special_tokens="none")
    with pytest.raises(InputError, match="context holds"):
        tokenize(
            tokenizer,
            "Hello",
            special_tokens="chat template",
            context_tokens=len(bare.token_ids),
        )


def test_every_distinct_id_is_spelled_once_in_the_order_of_ids(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    (prompt,) = tokenize(tokenizer, "to be or not to be")
    distinct = sorted(set(prompt.token_ids.tolist()))
    assert len(distinct) < len(prompt.token_ids)
    assert spell_tokens(prompt.token_ids, tokenizer) == tokenizer.convert_ids_to_tokens(distinct)


def test_an_id_beyond_the_vocabulary_has_an_empty_piece(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    ids = np.array([len(tokenizer) + 5, 1], dtype=np.int32)
    assert spell_tokens(ids, tokenizer) == ["<s>", ""]


def spoil_tokenizer(demo: Path, folder: Path, name: str, **changes: object) -> Checkpoint:
    """Return the demonstration tokenizer with changes to one of its files."""
    for file in demo.glob("*.json"):
        shutil.copy(file, folder)
    settings = json.loads((folder / name).read_text("utf-8"))
    (folder / name).write_text(json.dumps({**settings, **changes}), "utf-8")
    return Checkpoint(name="spoiled", folder=folder, revision=None)


def test_a_panic_inside_the_tokenizers_library_is_an_error_and_announces_nothing(
    demo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}],
        "pair": [],
        "special_tokens": {},
    }
    checkpoint = spoil_tokenizer(demo, tmp_path, "tokenizer.json", post_processor=template)
    panicking = load_tokenizer(checkpoint, trust_remote_code=False)
    with pytest.raises(
        InputError, match=r"a\.jsonl:1: the tokenizer fails on prompt '1'"
    ) as caught:
        tokenize(panicking, "Hello", "you")
    assert "PanicException" in caught.value.facts[0]
    assert capfd.readouterr().err == ""


def test_a_word_for_a_length_is_an_error(demo: Path, tmp_path: Path) -> None:
    checkpoint = spoil_tokenizer(
        demo, tmp_path, "tokenizer_config.json", model_max_length="as many as you like"
    )
    spoiled = load_tokenizer(checkpoint, trust_remote_code=False)
    with pytest.raises(InputError, match="the tokenizer fails on prompt '1'"):
        tokenize(spoiled, "Hello")


@pytest.mark.parametrize("special_tokens", ["tokenizer", "chat template"])
@pytest.mark.parametrize("context_tokens", [CONTEXT, None])
def test_a_text_that_fits_no_context_is_refused_untokenized(
    special_tokens: SpecialTokens,
    context_tokens: int | None,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    monkeypatch.setattr(tokenizer, "encode", None)
    most = "1,000,000" if context_tokens else "10,000,000"
    with pytest.raises(InputError, match=f"has 20,000,000 characters; at most {most} are"):
        tokenize(
            tokenizer,
            "a" * 20_000_000,
            special_tokens=special_tokens,
            context_tokens=context_tokens,
            max_prompt_tokens=5,
        )


def test_a_long_context_allows_a_longer_text(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InputError, match="at most 1,600,000 are tokenized"):
        tokenize(tokenizer, "a" * 1_600_001, context_tokens=100_000)


def test_a_chat_template_may_not_make_a_text_that_fits_no_context(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", "{{ 'a' * 5_000_000 }}")
    with pytest.raises(InputError, match="has 5,000,000 characters"):
        tokenize(tokenizer, "Hello", special_tokens="chat template")


def test_a_token_that_the_model_does_not_have_is_an_error(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    prompts = [make_prompt("Hello world")]
    ids = tokenizer.encode("Hello world")
    for vocabulary, is_enough in ((max(ids) + 1, True), (max(ids), False)):
        if is_enough:
            (tokenized,) = tokenize_prompts(
                prompts,
                tokenizer,
                special_tokens="tokenizer",
                context_tokens=CONTEXT,
                vocabulary=vocabulary,
            )
            assert tokenized.token_ids.tolist() == ids
        else:
            with pytest.raises(InputError, match=f"the token {max(ids):,}, but the model has"):
                tokenize_prompts(
                    prompts,
                    tokenizer,
                    special_tokens="tokenizer",
                    context_tokens=CONTEXT,
                    vocabulary=vocabulary,
                )


def test_a_pad_that_the_model_does_not_have_is_replaced(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(tokenizer), "pad_token_id", 2_048, raising=False)
    assert choose_pad(tokenizer, vocabulary=2_049) == 2_048
    assert choose_pad(tokenizer, vocabulary=2_048) == 0
    assert choose_pad(tokenizer, vocabulary=None) == 2_048
