"""Continue a batch of prompts, greedily or by sampling."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from moetool.checkpoint.config import first_line
from moetool.errors import InputError, UntraceableError, UsageError
from moetool.memory.scenario import CacheKind
from moetool.tracing.options import GenerationOptions
from moetool.tracing.prompts.tokens import choose_pad, count_embeddings
from moetool.tracing.recording.transfer.host_copies import send_to
from moetool.tracing.running.batches import Batch
from moetool.tracing.running.token_settings import check_token_settings

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

# A checkpoint's generation settings about its tokens are kept. Those about choosing among tokens are
# not: greedy means the most likely token, in every model.
_KEPT_SETTINGS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
)

_BLOCKWISE_LAYERS = {
    "compressed_sparse_attention",
    "heavily_compressed_attention",
    "minimax_m3_sparse",
}


@dataclass(frozen=True)
class Continuation:
    """The tokens that a model generated after one prompt.

    Attributes:
        token_ids: The new tokens, an end-of-sequence token included. # (num_new_tokens,)
        has_ended: Whether the model generated an end-of-sequence token.
        is_new_text: Whether it is a separate text, as an encoder-decoder generates, instead of a
            continuation of the prompt.
    """

    token_ids: NDArray[np.int32]
    has_ended: bool
    is_new_text: bool = False


def check_can_generate(model: PreTrainedModel) -> None:
    """Check that a model generates token by token, through transformers' own `generate`.

    Raises:
        UsageError: It generates no text, or has its own `generate`.
    """
    from transformers import GenerationMixin

    own = getattr(type(model), "generate", None)
    if not model.can_generate() or own is not GenerationMixin.generate:
        raise UsageError(
            f"{type(model).__name__} does not generate text token by token.",
            hint="Leave out --max-new-tokens to trace the prompts alone.",
        )


def takes_left_pads(model: PreTrainedModel) -> bool:
    """Return whether pads before a text leave a model's results unchanged.

    DeepSeek-V4 and MiniMax-M3 attend to blocks of a fixed number of columns, and pads move the
    blocks.
    """
    kinds: Collection[str] = getattr(model.config.get_text_config(), "layer_types", None) or ()
    return not _BLOCKWISE_LAYERS & set(kinds)


@contextmanager
def generation_settings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: GenerationOptions
) -> Iterator[None]:
    """Give a model settings under which `generate` follows the options and nothing else.

    Raises:
        UsageError: The model has no cache of the kind asked for.
        UntraceableError: transformers lacks a setting of this name.
        InputError: The checkpoint does not name a valid first token of the decoder, or another
            setting of it is not a token.
    """
    if options.cache == CacheKind.STATIC:
        _check_static_cache(model)
    own = model.generation_config
    kept: dict[str, Any] = {name: getattr(own, name, None) for name in _KEPT_SETTINGS}
    if kept["eos_token_id"] is None:
        kept["eos_token_id"] = tokenizer.eos_token_id
    vocabulary = count_embeddings(model)
    if kept["pad_token_id"] is None:
        kept["pad_token_id"] = choose_pad(tokenizer, vocabulary=vocabulary)
    if kept["decoder_start_token_id"] is None:
        # As in `generate`.
        kept["decoder_start_token_id"] = kept["bos_token_id"]
    check_token_settings(kept, vocabulary=vocabulary, reads_start=model.config.is_encoder_decoder)
    if model.config.is_encoder_decoder and kept["decoder_start_token_id"] is None:
        raise InputError(
            f"The checkpoint does not state the first token of the decoder of {type(model).__name__}.",
            hint="Put its decoder_start_token_id into generation_config.json.",
        )
    chosen: dict[str, Any] = {}
    if not options.is_greedy:
        chosen = {
            "temperature": 1.0 if options.temperature is None else options.temperature,
            "top_p": 1.0 if options.top_p is None else options.top_p,
            "top_k": 0,
        }
    settings: dict[str, Any] = {
        **kept,
        **chosen,
        "max_new_tokens": options.max_new_tokens,
        "do_sample": not options.is_greedy,
        "cache_implementation": "static" if options.cache == CacheKind.STATIC else None,
        # Compiled code runs past hooks.
        "disable_compile": True,
    }
    model.generation_config = _make_settings(settings)
    try:
        yield
    finally:
        model.generation_config = own


def _make_settings(settings: Mapping[str, Any]) -> GenerationConfig:
    """Return generation settings, all of which the installed transformers knows.

    Raises:
        UntraceableError: It would silently ignore one of them.
    """
    from transformers import GenerationConfig

    make: Any = GenerationConfig
    known = vars(make())
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise UntraceableError(
            f"This version of transformers has no generation setting '{unknown[0]}'.",
            hint="Install a version of transformers that moetool is tested with.",
        )
    made: GenerationConfig = make(**settings)
    return made


def _check_static_cache(model: PreTrainedModel) -> None:
    from transformers import StaticCache

    own: Any = model
    try:
        # `generate` would use the model's own kind of cache regardless of the setting.
        if not own._supports_default_dynamic_cache():
            raise NotImplementedError("it has its own kind of cache")
        StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=1)
    except Exception as error:
        raise UsageError(
            f"transformers has no static cache for {type(model).__name__}.",
            hint="Leave out --cache.",
            facts=[f"seen: {first_line(error)}"],
        ) from error


def choose_batch_seed(options: GenerationOptions, *, window: int, batch: int) -> int | None:
    """Return a seed for the sampling in one batch; None if nothing is sampled.

    It depends on nothing but the batch's place, so that a resumed run, or one of several processes,
    draws the same tokens. It is the first 8 bytes, as a little-endian number, of the SHA-256 of the
    three numbers in decimal, separated by spaces.

    Args:
        options: Of the run, with its seed.
        window: Index of the batch's window in the run.
        batch: Index of the batch in its window.
    """
    if options.is_greedy:
        return None
    digest = hashlib.sha256(f"{options.seed} {window} {batch}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def continue_batch(
    model: PreTrainedModel, batch: Batch, *, device: torch.device, seed: int | None = None
) -> list[Continuation]:
    """Return the continuation of each prompt of a batch, under `generation_settings`.

    Args:
        model: The loaded model.
        batch: The padded prompts.
        device: Where the model's inputs go.
        seed: Given to torch before sampling.
    """
    if seed is not None:
        torch.manual_seed(seed)
    generate: Any = model.generate
    with torch.inference_mode():
        output = generate(
            input_ids=send_to(device, batch.input_ids),
            attention_mask=send_to(device, batch.attention_mask),
        )
    # The output of an encoder-decoder begins with its start token, that of others with the prompt.
    is_new_text = bool(model.config.is_encoder_decoder)
    num_given = 1 if is_new_text else batch.input_ids.shape[1]
    written = output[:, num_given:]  # (batch_size, num_new_tokens)
    ends = _end_tokens(model)
    return [
        _cut(row, ends, is_new_text=is_new_text) for row in written.cpu().numpy().astype(np.int32)
    ]


def _end_tokens(model: PreTrainedModel) -> NDArray[np.int32]:
    ends = model.generation_config.eos_token_id
    return np.atleast_1d(np.array([] if ends is None else ends, dtype=np.int32))


def _cut(
    token_ids: NDArray[np.int32], ends: NDArray[np.int32], *, is_new_text: bool
) -> Continuation:
    """Cut a row after its first end-of-sequence token, because padding follows."""
    at = np.flatnonzero(np.isin(token_ids, ends))
    num_written = at[0] + 1 if len(at) else len(token_ids)
    return Continuation(token_ids[:num_written], has_ended=bool(len(at)), is_new_text=is_new_text)
