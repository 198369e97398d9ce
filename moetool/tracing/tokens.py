"""From prompts to token ids, checked against the model's context before the model is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from numpy.typing import NDArray

from moetool.errors import InputError, UsageError
from moetool.tracing.prompts import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

SpecialTokens = Literal["tokenizer", "none", "chat template"]


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as the model reads it.

    Attributes:
        prompt: The prompt.
        token_ids: # (num_tokens,)
        was_cut: Whether tokens beyond the limit were left out.
    """

    prompt: Prompt
    token_ids: NDArray[np.int32]
    was_cut: bool


def tokenize_prompts(
    prompts: Iterable[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    *,
    special_tokens: SpecialTokens,
    context_tokens: int | None,
    max_prompt_tokens: int | None = None,
    max_new_tokens: int = 0,
) -> list[TokenizedPrompt]:
    """Return every prompt's tokens.

    Args:
        prompts: The prompts.
        tokenizer: The model's own.
        special_tokens: Who adds tokens such as `<s>`: the tokenizer, nobody, or the tokenizer's
            chat template, which makes the prompt a user's message and begins the answer.
        context_tokens: The longest sequence the model takes; None if it doesn't say.
        max_prompt_tokens: Keep only the first so many tokens of a prompt.
        max_new_tokens: So many tokens will follow it in the context.

    Raises:
        InputError: A prompt with what follows is longer than the context, or the tokenizer has no
            chat template.
        UsageError: A limit is larger than the context.
    """
    if max_prompt_tokens is not None and context_tokens and max_prompt_tokens > context_tokens:
        raise UsageError(
            f"--max-prompt-tokens {max_prompt_tokens} is beyond the model's context of "
            f"{context_tokens} tokens.",
            hint=f"Give {context_tokens} or less.",
        )
    if context_tokens and max_new_tokens >= context_tokens:
        raise UsageError(
            f"--max-new-tokens {max_new_tokens} leaves no room for a prompt in the model's context "
            f"of {context_tokens} tokens.",
            hint=f"Give less than {context_tokens}.",
        )
    if special_tokens == "chat template" and not tokenizer.chat_template:
        raise InputError(
            "This model's tokenizer has no chat template.",
            hint="Leave --chat out: the model was not trained to chat.",
        )
    tokenized = []
    for prompt in prompts:
        ids = _encode(prompt.text, tokenizer, special_tokens)
        if not ids:
            raise InputError(
                f"{prompt.place}: prompt '{prompt.prompt_id}' has no tokens.",
                hint="Give it a text, or leave --no-special-tokens out.",
            )
        kept = ids[:max_prompt_tokens]
        if context_tokens and len(kept) + max_new_tokens > context_tokens:
            following = f" and {max_new_tokens:,} new ones" if max_new_tokens else ""
            raise InputError(
                f"{prompt.place}: prompt '{prompt.prompt_id}' has {len(kept):,} tokens{following}; "
                f"the model's context holds {context_tokens:,}.",
                hint=f"Cut long prompts with --max-prompt-tokens {context_tokens - max_new_tokens}"
                f"{', or ask for fewer new tokens' if max_new_tokens else ''}.",
            )
        tokenized.append(
            TokenizedPrompt(
                prompt=prompt,
                token_ids=np.array(kept, dtype=np.int32),
                was_cut=len(kept) < len(ids),
            )
        )
    return tokenized


def read_context_tokens(config: PreTrainedConfig) -> int | None:
    """Return the longest sequence a model takes, or None if its configuration doesn't say."""
    value = getattr(config.get_text_config(), "max_position_embeddings", None)
    return value if isinstance(value, int) and value > 0 else None


def spell_tokens(token_ids: NDArray[np.int32], tokenizer: PreTrainedTokenizerBase) -> Sequence[str]:
    """Return the tokenizer's own piece for each distinct id, in ascending order of ids."""
    distinct = [int(token_id) for token_id in np.unique(token_ids)]
    # An id beyond the vocabulary (padding of the embedding) has no piece.
    return [piece or "" for piece in tokenizer.convert_ids_to_tokens(distinct)]


def _encode(
    text: str, tokenizer: PreTrainedTokenizerBase, special_tokens: SpecialTokens
) -> list[int]:
    if special_tokens == "chat template":
        message = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(
            message, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    else:
        ids = tokenizer.encode(text, add_special_tokens=special_tokens == "tokenizer")
    return cast("list[int]", ids)
