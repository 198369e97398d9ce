"""One batch sent through a model, to be read or continued, and the tokens that passed each stack."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moetool.errors import UsageError
from moetool.tracing.recording.scopes import RecordedModel
from moetool.tracing.recording.transfer.host_copies import send_to
from moetool.tracing.running.batches import Batch
from moetool.tracing.running.devices import find_input_device
from moetool.tracing.running.generation import Continuation, continue_batch
from moetool.tracing.windows.collect import RoutedSequence

Sequences = dict[str, list[RoutedSequence]]


def check_can_read(recorded: RecordedModel) -> None:
    """Check that a model routes when it only reads its prompts.

    Raises:
        UsageError: Only its encoder reads, and has none of the layers to record.
    """
    paths = [scope.path for scope in recorded.scopes]
    if recorded.encoder is not None and recorded.encoder not in paths:
        raise UsageError(
            f"The encoder of {type(recorded.model).__name__} has no routed experts in these layers.",
            hint="Add --max-new-tokens to trace the decoder.",
        )


def read_batch(
    recorded: RecordedModel, batch: Batch, *, token_ids: Sequence[NDArray[np.int32]]
) -> Sequences:
    """Run one prefill; in an encoder-decoder, only the encoder's.

    Args:
        recorded: The loaded model.
        batch: The padded prompts.
        token_ids: Each row's tokens without pads.

    Returns:
        By the path of the module that was called, the tokens that each row put through it.
    """
    path = recorded.encoder or ""
    reader = recorded.model.get_submodule(path)
    accepted = inspect.signature(reader.forward).parameters
    # Neither a cache nor, where the model takes this option, logits of every position.
    wishes: dict[str, Any] = {"use_cache": False, "logits_to_keep": 1}
    device = find_input_device(recorded.model)
    with torch.inference_mode():
        reader(
            input_ids=send_to(device, batch.input_ids),
            attention_mask=send_to(device, batch.attention_mask),
            **{name: value for name, value in wishes.items() if name in accepted},
        )
    return {path: _read(token_ids)}


def write_batch(
    recorded: RecordedModel,
    batch: Batch,
    *,
    token_ids: Sequence[NDArray[np.int32]],
    seed: int | None = None,
) -> tuple[Sequences, list[Continuation]]:
    """Continue a batch under `generation_settings`.

    The last token of a continuation did not pass the model: nothing was predicted from it.

    Args:
        recorded: The loaded model.
        batch: The padded prompts.
        token_ids: Each row's tokens without pads.
        seed: Given to torch before sampling, see `choose_batch_seed`.

    Returns:
        By the path of each module that was called, the tokens that each row put through it; and
        each row's continuation.
    """
    model: Any = recorded.model
    device = find_input_device(model)
    continuations = continue_batch(model, batch, device=device, seed=seed)
    if recorded.encoder is None:
        pairs = zip(token_ids, continuations, strict=True)
        return {"": [_write(given, written) for given, written in pairs]}, continuations
    start = np.array([model.generation_config.decoder_start_token_id], dtype=np.int32)
    decoder = [_write(start, written) for written in continuations]
    return {
        scope.path: _read(token_ids) if scope.path == recorded.encoder else decoder
        for scope in recorded.scopes
    }, continuations


def _read(token_ids: Sequence[NDArray[np.int32]]) -> list[RoutedSequence]:
    return [RoutedSequence(ids, num_given=len(ids)) for ids in token_ids]


def _write(given: NDArray[np.int32], continuation: Continuation) -> RoutedSequence:
    written = continuation.token_ids[:-1]
    return RoutedSequence(np.concatenate([given, written]), num_given=len(given))
