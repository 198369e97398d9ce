"""Texts encoded together have the tokens, and the errors, that each has alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase

from moetool.checkpoint.config import load_tokenizer
from moetool.checkpoint.files import Checkpoint
from moetool.errors import InputError
from moetool.tracing.prompts.encoding import takes_many
from moetool.tracing.prompts.prompts import Prompt
from moetool.tracing.prompts.tokens import tokenize_prompts

AT_ONCE = 3


@pytest.fixture(scope="module")
def tokenizer(demo: Path) -> PreTrainedTokenizerBase:
    checkpoint = Checkpoint(name="demo", folder=demo, revision=None)
    return load_tokenizer(checkpoint, trust_remote_code=False)


@pytest.fixture(scope="module", autouse=True)
def few_at_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moetool.tracing.prompts.tokens._PROMPTS_AT_ONCE", AT_ONCE)
        yield


def make_prompts(*texts: str) -> list[Prompt]:
    return [
        Prompt(prompt_id=str(number), domain="prose", text=text, origin=f"a:{number}")
        for number, text in enumerate(texts, start=1)
    ]


def tokenize(tokenizer: PreTrainedTokenizerBase, *prompts: Prompt, **options: Any) -> list[Any]:
    chosen: dict[str, Any] = {"special_tokens": "tokenizer", "context_tokens": None, **options}
    return tokenize_prompts(prompts, tokenizer, **chosen)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(max_size=30), max_size=8))
@example(["", " ", "<s>", "</s>Hello", "größer 🙂", "a\x00b", "\n\n"])
def test_texts_have_the_tokens_that_each_has_alone(
    tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> None:
    assert takes_many(tokenizer)
    together = tokenize(tokenizer, *make_prompts(*texts))
    assert [item.token_ids.tolist() for item in together] == list(map(tokenizer.encode, texts))
    assert [item.prompt.text for item in together] == texts


def test_several_texts_are_encoded_by_one_call_and_progress_is_counted(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, calls, counts = tokenizer.encode, [], []

    def spy(texts: Any, **options: Any) -> Any:
        calls.append(texts)
        return encode(texts, **options)

    monkeypatch.setattr(tokenizer, "encode", spy)
    texts = ["one", "two", "three", "four", "five", "six", "seven"]
    tokenize(tokenizer, *make_prompts(*texts), advance=lambda *both: counts.append(both))
    assert calls == [texts[:3], texts[3:6], "seven"]
    assert counts == [(3, 7), (6, 7), (7, 7)]


def test_a_tokenizer_in_python_takes_one_text_at_a_time() -> None:
    by_bytes = ByT5Tokenizer()
    assert not takes_many(by_bytes)
    assert [item.token_ids.tolist() for item in tokenize(by_bytes, *make_prompts("ab", "é"))] == [
        by_bytes.encode("ab"),
        by_bytes.encode("é"),
    ]


def test_the_first_prompt_with_a_fault_is_named(tokenizer: PreTrainedTokenizerBase) -> None:
    fine, long, talk = make_prompts("Hello", "far too long " * 20, "Hi")
    talk = replace(talk, messages=({"role": "user", "content": "Hi"},))
    with pytest.raises(InputError, match=r"prompt '2' has .* tokens; the model's context holds 16"):
        tokenize(tokenizer, fine, long, talk, context_tokens=16)
    with pytest.raises(InputError, match="prompt '3' is a conversation"):
        tokenize(tokenizer, fine, talk, long, context_tokens=16)
