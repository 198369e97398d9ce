"""Conversations as prompts: read, and rendered by the chat template."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from transformers import PreTrainedTokenizerBase

from moetool.checkpoint.config import load_tokenizer
from moetool.checkpoint.files import Checkpoint
from moetool.errors import InputError
from moetool.tracing.prompts.encoding import SpecialTokens
from moetool.tracing.prompts.files import PromptFields
from moetool.tracing.prompts.given import take_prompts
from moetool.tracing.prompts.prompts import Prompt, hash_prompts, read_prompts
from moetool.tracing.prompts.tokens import TokenizedPrompt, tokenize_prompts

TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}{{ message.get('name', '') }}] "
    "{{ message.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
QUESTION: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 + 2?", "name": "Ada"},
]
ANSWERED = [*QUESTION, {"role": "assistant", "content": "4"}]
RENDERED = "[system] Be brief.\n[userAda] What is 2 + 2?\n"


@pytest.fixture(scope="module")
def own(demo: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(
        Checkpoint(name="demo", folder=demo, revision=None), trust_remote_code=False
    )


@pytest.fixture
def tokenizer(own: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    chatty = copy.copy(own)
    chatty.chat_template = TEMPLATE
    return chatty


def read(path: Path, *rows: dict[str, Any], text: str = "text") -> list[Prompt]:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        pd.DataFrame(list(rows)).to_parquet(path)
    return read_prompts(str(path), fields=PromptFields(text=text), chat=True)


def tokenize(
    prompts: list[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    special_tokens: SpecialTokens = "chat template",
) -> list[TokenizedPrompt]:
    return tokenize_prompts(prompts, tokenizer, special_tokens=special_tokens, context_tokens=None)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_conversation_is_rendered_by_the_chat_template(
    suffix: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = [{"domain": "sums", "messages": messages} for messages in (QUESTION, ANSWERED)]
    prompts = read(tmp_path / f"chats{suffix}", *rows)
    texts = [tokenizer.decode(each.token_ids.tolist()) for each in tokenize(prompts, tokenizer)]

    assert [(each.prompt_id, each.domain) for each in prompts] == [("1", "sums"), ("2", "sums")]
    # The beginning of an answer follows only where there is no answer yet.
    assert texts == [f"{RENDERED}[assistant] ", f"{RENDERED}[assistant] 4\n"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_column_of_another_name_may_hold_conversations(suffix: str, tmp_path: Path) -> None:
    (prompt,) = read(tmp_path / f"a{suffix}", {"prompt": QUESTION, "other": "x"}, text="prompt")

    assert prompt.messages == tuple(QUESTION)
    assert prompt.text == "system: Be brief.\n\nuser: What is 2 + 2?"


def test_a_text_takes_precedence_over_messages(tmp_path: Path) -> None:
    (prompt,) = read(tmp_path / "a.jsonl", {"text": "Hello", "messages": QUESTION})

    assert (prompt.text, prompt.messages) == ("Hello", None)


def test_a_conversation_may_be_any_sequence(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pd.DataFrame({"messages": [QUESTION]}).to_parquet(path)
    frame = pd.read_parquet(path)
    assert isinstance(frame["messages"][0], np.ndarray)

    for prompts in (frame, [{"messages": tuple(QUESTION)}]):
        (prompt,) = take_prompts(prompts, chat=True)
        assert prompt.messages == tuple(QUESTION)


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([{"content": "Hello"}], "'messages' has no 'role' in message 1"),
        ([*QUESTION, {"role": "user", "content": None}], "has no 'content' in message 3"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], "has no 'content'"),
        ([{"role": "user", "content": " "}], "'messages' has no text in any message"),
        (["Hello"], "'messages' is not a string but list"),
        ([], "'messages' is not a string but list"),
        ({"role": "user", "content": "x"}, "'messages' is not a string but dict"),
    ],
)
def test_what_is_not_a_conversation_is_named(
    messages: object, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path / "a.jsonl", {"messages": messages})

    assert complaint in caught.value.message


def test_a_conversation_needs_the_chat_template(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    prompts = read(tmp_path / "a.jsonl", {"messages": QUESTION})

    for act in (
        lambda: tokenize(prompts, tokenizer, "tokenizer"),
        lambda: read_prompts(str(tmp_path / "a.jsonl")),
    ):
        with pytest.raises(InputError, match="conversation, which only a chat template") as caught:
            act()
        assert caught.value.hint == "Add --chat to apply the model's."


def test_every_field_of_a_message_counts_in_the_hash(tmp_path: Path) -> None:
    unnamed = [QUESTION[0], {"role": "user", "content": "What is 2 + 2?"}]
    hashes = {
        hash_prompts(read(tmp_path / "a.jsonl", {"messages": messages}))
        for messages in (QUESTION, unnamed, ANSWERED)
    }

    assert len(hashes) == 3
