"""Texts and conversations encoded by a model's tokenizer, many at once where it can."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from moetool.checkpoint.config import first_line
from moetool.checkpoint.native_messages import native_messages_dropped
from moetool.errors import InputError, MoetoolError
from moetool.printable import printable
from moetool.tracing.prompts.chat_template import ChatTemplate
from moetool.tracing.prompts.messages import as_conversation
from moetool.tracing.prompts.prompts import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SpecialTokens = Literal["tokenizer", "none", "chat template"]

OWN_TOKENIZER = "Use the tokenizer files that came with the model."


@dataclass(frozen=True)
class Encoder:
    """A tokenizer's ways to encode prompts.

    Attributes:
        encode: Returns the token ids of one prompt.
        encode_many: Returns those of each of several prompts, without saying which one fails. None
            if the tokenizer only takes one at a time.
    """

    encode: Callable[[Prompt], list[int]]
    encode_many: Callable[[Sequence[Prompt]], list[list[int]]] | None = None


def encode_in_order(
    encoder: Encoder, prompts: Sequence[Prompt]
) -> Iterator[tuple[Prompt, list[int]]]:
    """Yield each prompt and its token ids.

    Raises:
        InputError: A prompt can't be encoded. Those before it have been yielded.
    """
    if encoder.encode_many is not None and len(prompts) > 1:
        try:
            with native_messages_dropped():
                encoded = encoder.encode_many(prompts)
        except BaseException as error:
            # A panic in the tokenizers library is not an Exception.
            is_failure = isinstance(error, Exception) or type(error).__name__ == "PanicException"
            if not is_failure or isinstance(error, MemoryError):
                raise
            # One at a time, below, they show which one fails.
        else:
            yield from zip(prompts, encoded, strict=True)
            return
    for prompt in prompts:
        yield prompt, encoder.encode(prompt)


@contextmanager
def open_encoder(
    tokenizer: PreTrainedTokenizerBase, special_tokens: SpecialTokens, *, longest: int
) -> Iterator[Encoder]:
    """Yield the encoder of a tokenizer.

    Args:
        tokenizer: The model's own.
        special_tokens: Who adds special tokens, see `tokenize_prompts`.
        longest: Most characters of a text.
    """

    def check_plain(prompt: Prompt) -> str:
        _check_length(prompt.text, prompt, longest=longest)
        if prompt.messages is not None:
            raise InputError(
                f"{prompt.origin}: prompt '{printable(prompt.prompt_id)}' is a conversation, which "
                "only a chat template can turn into a text.",
                hint="Add --chat to apply the model's.",
            )
        return prompt.text

    def encode_plain(prompt: Prompt) -> list[int]:
        text = check_plain(prompt)
        with _failing_on(prompt):
            ids = tokenizer.encode(text, add_special_tokens=special_tokens == "tokenizer")
        return cast("list[int]", ids)

    def encode_plain_ones(prompts: Sequence[Prompt]) -> list[list[int]]:
        texts = [check_plain(prompt) for prompt in prompts]
        return _encode_texts(tokenizer, texts, with_special=special_tokens == "tokenizer")

    def encode_message(prompt: Prompt, template: str | None = None, text: str = "") -> list[int]:
        conversation = as_conversation(prompt)
        # Variables of the template.
        variables: dict[str, Any] = {"rendered_already": text}
        with _failing_on(prompt):
            ids = tokenizer.apply_chat_template(
                conversation["messages"],
                chat_template=template,
                add_generation_prompt=conversation["add_generation_prompt"],
                tokenize=True,
                return_dict=False,
                **(variables if template else {}),
            )
        return cast("list[int]", ids)

    if special_tokens != "chat template":
        yield Encoder(encode_plain, encode_plain_ones if takes_many(tokenizer) else None)
    elif _has_own_chat(tokenizer):
        yield Encoder(encode_message)
    else:
        with ChatTemplate(tokenizer) as chat:

            def render(prompt: Prompt) -> str:
                _check_length(prompt.text, prompt, longest=longest)
                text = chat.render(prompt)
                _check_length(text, prompt, longest=longest)
                return text

            def encode_rendered(prompt: Prompt) -> list[int]:
                # transformers adds the tokens, as it does after its own rendering.
                return encode_message(prompt, "{{ rendered_already }}", render(prompt))

            yield Encoder(encode_rendered)


def takes_many(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a tokenizer encodes many texts at once, each as it encodes it alone.

    The class of transformers around the tokenizers library does, in threads. Classes that change
    how it encodes may not.
    """
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    own: Any = type(tokenizer)
    return issubclass(own, PreTrainedTokenizerFast) and (
        own.encode is PreTrainedTokenizerBase.encode
        and own._encode_plus is PreTrainedTokenizerFast._encode_plus
    )


def _encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, with_special: bool
) -> list[list[int]]:
    many: Any = list(texts)
    ids: Any = tokenizer.encode(many, add_special_tokens=with_special, return_attention_mask=False)
    return cast("list[list[int]]", ids)


def _has_own_chat(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a tokenizer's class renders messages in code, without a template."""
    from transformers import PreTrainedTokenizerBase

    own = type(tokenizer).apply_chat_template
    return own is not PreTrainedTokenizerBase.apply_chat_template


@contextmanager
def _failing_on(prompt: Prompt) -> Iterator[None]:
    """Turn any exception of a tokenizer into an error that names the prompt."""
    try:
        with native_messages_dropped():
            yield
    except (MoetoolError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    # A panic in the tokenizers library is not an Exception.
    except BaseException as error:
        raise InputError(
            f"{prompt.origin}: the tokenizer fails on prompt '{printable(prompt.prompt_id)}'.",
            hint=OWN_TOKENIZER,
            facts=[f"seen: {first_line(error)}"],
        ) from error


def _check_length(text: str, prompt: Prompt, *, longest: int) -> None:
    """Refuse a text that would take long to tokenize and fit into no context.

    Raises:
        InputError: It is longer than `longest`.
    """
    if len(text) > longest:
        raise InputError(
            f"{prompt.origin}: prompt '{printable(prompt.prompt_id)}' has {len(text):,} characters; "
            f"at most {longest:,} are tokenized for this model.",
            hint="Shorten its text.",
        )
