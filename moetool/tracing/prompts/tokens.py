"""Token ids of prompts, checked against the model's context before the model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moetool.anatomy.config_fields import find_position_limit
from moetool.errors import InputError, UsageError
from moetool.printable import printable
from moetool.process.quiet import quiet_transformers
from moetool.tracing.prompts.encoding import (
    OWN_TOKENIZER,
    SpecialTokens,
    encode_in_order,
    open_encoder,
)
from moetool.tracing.prompts.prompts import Prompt
from moetool.wording import number_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# The longest text that is tokenized, as tokenizing takes seconds per megabyte: this many characters
# (four are usual) for every token of the context but never less than the least; the most if the
# context is unknown.
_CHARACTERS_PER_TOKEN = 16
_LEAST_CHARACTERS = 1_000_000
_MOST_CHARACTERS = 10_000_000

# Tokenized by one call, in all threads that the tokenizer has.
_CHARACTERS_AT_ONCE = 1_000_000
_PROMPTS_AT_ONCE = 1_024


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as the model reads it.

    Attributes:
        prompt: The prompt as it was given.
        token_ids: # (num_tokens,)
        was_cut: Whether it was truncated to the limit.
    """

    prompt: Prompt
    token_ids: NDArray[np.int32]
    was_cut: bool


@quiet_transformers()
def tokenize_prompts(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    *,
    special_tokens: SpecialTokens,
    context_tokens: int | None,
    vocabulary: int | None = None,
    max_prompt_tokens: int | None = None,
    max_new_tokens: int = 0,
    advance: Callable[[int, int], None] | None = None,
) -> list[TokenizedPrompt]:
    """Return every prompt's tokens.

    Args:
        prompts: All of one run.
        tokenizer: The model's own.
        special_tokens: Who adds tokens such as `<s>`: the tokenizer, nobody, or the tokenizer's
            chat template, which makes the prompt a user's message, or takes its conversation, and
            begins the answer.
        context_tokens: The longest sequence the model takes; None if unknown.
        vocabulary: Number of token ids that the model has, from 0; None if unknown.
        max_prompt_tokens: Truncate prompts to this many tokens.
        max_new_tokens: Number of tokens that will follow each prompt in the context.
        advance: Called now and then with the number of prompts that are done, and of all.

    Raises:
        InputError: A prompt with its new tokens is longer than the context; the tokenizer has no
            chat template, fails, or makes tokens that the model doesn't have.
        UsageError: A limit is larger than the context.
    """
    if max_prompt_tokens is not None and context_tokens and max_prompt_tokens > context_tokens:
        raise UsageError(
            f"A limit of {max_prompt_tokens:,} tokens for prompts exceeds the model's context of "
            f"{context_tokens:,} tokens.",
            hint=f"Give --max-prompt-tokens {context_tokens} or less.",
        )
    if context_tokens and max_new_tokens >= context_tokens:
        raise UsageError(
            f"{max_new_tokens:,} new tokens leave no room for a prompt in the model's context of "
            f"{context_tokens:,} tokens.",
            hint=f"Give a --max-new-tokens below {context_tokens}.",
        )
    if special_tokens == "chat template" and not tokenizer.chat_template:
        raise InputError(
            "This model's tokenizer has no chat template.",
            hint="Leave out --chat, or name a model that was trained to chat.",
        )
    tokenized: list[TokenizedPrompt] = []
    with open_encoder(
        tokenizer, special_tokens, longest=_limit_characters(context_tokens)
    ) as encoder:
        for part in _split(prompts):
            for prompt, ids in encode_in_order(encoder, part):
                tokenized.append(
                    _keep(
                        prompt,
                        ids,
                        context_tokens=context_tokens,
                        vocabulary=vocabulary,
                        max_prompt_tokens=max_prompt_tokens,
                        max_new_tokens=max_new_tokens,
                    )
                )
            if advance is not None:
                advance(len(tokenized), len(prompts))
    return tokenized


def _keep(
    prompt: Prompt,
    ids: Sequence[int],
    *,
    context_tokens: int | None,
    vocabulary: int | None,
    max_prompt_tokens: int | None,
    max_new_tokens: int,
) -> TokenizedPrompt:
    """Return a prompt with its tokens, truncated, after checking that the model can read them."""
    if not ids:
        raise InputError(
            f"{prompt.origin}: prompt '{printable(prompt.prompt_id)}' has no tokens.",
            hint="Give it a text, or leave out --no-special-tokens.",
        )
    _check_ids(ids, prompt, vocabulary=vocabulary)
    kept = ids[:max_prompt_tokens]
    if context_tokens and len(kept) + max_new_tokens > context_tokens:
        new_ones = number_of(max_new_tokens, "new one")
        following = f" and {new_ones}" if max_new_tokens else ""
        raise InputError(
            f"{prompt.origin}: prompt '{printable(prompt.prompt_id)}' has "
            f"{number_of(len(kept), 'token')}{following}; "
            f"the model's context holds {context_tokens:,}.",
            hint=f"Truncate long prompts with --max-prompt-tokens {context_tokens - max_new_tokens}"
            f"{', or ask for fewer new tokens' if max_new_tokens else ''}.",
        )
    return TokenizedPrompt(
        prompt=prompt,
        token_ids=np.array(kept, dtype=np.int32),
        was_cut=len(kept) < len(ids),
    )


def _split(prompts: Sequence[Prompt]) -> Iterator[list[Prompt]]:
    """Yield all prompts in runs of a few characters, so that progress shows."""
    part: list[Prompt] = []
    num_characters = 0
    for prompt in prompts:
        part.append(prompt)
        num_characters += len(prompt.text)
        if num_characters >= _CHARACTERS_AT_ONCE or len(part) == _PROMPTS_AT_ONCE:
            yield part
            part, num_characters = [], 0
    if part:
        yield part


def choose_special_tokens(*, chat: bool, special_tokens: bool) -> SpecialTokens:
    """Return who adds special tokens: a chat template always does, a tokenizer if it may."""
    if chat:
        return "chat template"
    return "tokenizer" if special_tokens else "none"


def read_context_tokens(config: PreTrainedConfig) -> int | None:
    """Return the longest sequence a model takes, or None if its configuration doesn't say."""
    return find_position_limit(config)


def spell_tokens(token_ids: NDArray[np.int32], tokenizer: PreTrainedTokenizerBase) -> Sequence[str]:
    """Return the tokenizer's own piece for each distinct id, in ascending order of ids."""
    distinct = [int(token_id) for token_id in np.unique(token_ids)]
    # Ids beyond the vocabulary, which pad the embedding, have no piece.
    return [piece or "" for piece in tokenizer.convert_ids_to_tokens(distinct)]


def count_embeddings(model: PreTrainedModel) -> int | None:
    """Return the number of token ids that a model has an embedding for; None if unknown."""
    try:
        number = getattr(model.get_input_embeddings(), "num_embeddings", None)
    except (AttributeError, NotImplementedError):
        return None
    return number if isinstance(number, int) else None


def choose_pad(tokenizer: PreTrainedTokenizerBase, *, vocabulary: int | None) -> int:
    """Return the token for pads: the tokenizer's if the model has it, else token 0."""
    pad = tokenizer.pad_token_id
    is_usable = isinstance(pad, int) and pad >= 0 and (vocabulary is None or pad < vocabulary)
    return pad if is_usable else 0


def _limit_characters(context_tokens: int | None) -> int:
    if context_tokens is None:
        return _MOST_CHARACTERS
    return max(_LEAST_CHARACTERS, _CHARACTERS_PER_TOKEN * context_tokens)


def _check_ids(ids: Sequence[int], prompt: Prompt, *, vocabulary: int | None) -> None:
    """Check that a model has all tokens of a prompt.

    Raises:
        InputError: A token is not among the model's.
    """
    if vocabulary is not None and not 0 <= min(ids) <= max(ids) < vocabulary:
        wrong = min(ids) if min(ids) < 0 else max(ids)
        raise InputError(
            f"{prompt.origin}: the tokenizer gives prompt '{printable(prompt.prompt_id)}' the token "
            f"{wrong:,}, but the model has only 0 to {vocabulary - 1:,}.",
            hint=OWN_TOKENIZER,
        )
