"""Bits of held-out text under the model and under two baselines, and the load of experts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import MixtralForCausalLM

from tools.train_demo.tokenizer import CONTEXT_TOKENS, VOCAB_SIZE, TokenIds


@torch.inference_mode()
def evaluate(
    model: MixtralForCausalLM, tokens: TokenIds, *, bos: int
) -> tuple[float, NDArray[np.float64]]:
    """Return the text's total bits under the model, and assignments per `(layer, expert)`.

    The text is cut into windows of the whole context, each after `<s>`; every token counts once.
    """
    num_layers, num_experts = model.config.num_hidden_layers, model.config.num_local_experts
    assignments = torch.zeros(num_layers, num_experts, dtype=torch.float64)

    def count(layer: int) -> Callable[..., None]:
        def hook(_module: object, args: tuple[torch.Tensor, ...]) -> None:
            ids = args[1].flatten().cpu()  # (num_tokens * top_k,)
            assignments[layer] += torch.bincount(ids, minlength=num_experts)

        return hook

    handles = [
        layer.mlp.experts.register_forward_pre_hook(count(index))
        for index, layer in enumerate(model.model.layers)
    ]
    nats = 0.0
    width = CONTEXT_TOKENS - 1
    for start in range(0, len(tokens), width):
        window = np.concatenate([[bos], tokens[start : start + width]])[None]
        ids = torch.from_numpy(window).to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        nats += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
    for handle in handles:
        handle.remove()
    return nats / math.log(2), assignments.numpy()


def unigram_bits(train_tokens: TokenIds, tokens: TokenIds) -> float:
    """Return the total bits of `tokens` under add-one unigram counts of the training tokens."""
    counts = np.bincount(train_tokens, minlength=VOCAB_SIZE) + 1.0
    return float(-np.log2(counts / counts.sum())[tokens].sum())


def bigram_bits(train_tokens: TokenIds, tokens: TokenIds) -> float:
    """Return the total bits of `tokens` under an absolutely discounted bigram model.

    `p(b|a) = max(c(a,b) - 0.75, 0) / c(a) + 0.75 * |{b: c(a,b) > 0}| / c(a) * p(b)` with the
    unigram model above as `p(b)`; the first token is scored by the unigram model.
    """
    pairs = np.zeros((VOCAB_SIZE, VOCAB_SIZE))
    np.add.at(pairs, (train_tokens[:-1], train_tokens[1:]), 1)
    unigram = np.bincount(train_tokens, minlength=VOCAB_SIZE) + 1.0
    unigram /= unigram.sum()
    totals = pairs.sum(1)
    seen = totals > 0
    backoff = np.where(seen, 0.75 * (pairs > 0).sum(1) / np.where(seen, totals, 1), 1.0)
    before, after = tokens[:-1], tokens[1:]
    kept = np.maximum(pairs[before, after] - 0.75, 0) / np.where(seen, totals, 1)[before]
    probabilities = kept + backoff[before] * unigram[after]
    return float(-np.log2(unigram[tokens[0]]) - np.log2(probabilities).sum())


@dataclass(frozen=True)
class DomainScore:
    """Held-out bits per UTF-8 byte of one domain, under the model and under two baselines."""

    name: str
    source: str
    train_bytes: int
    held_out_bytes: int
    model: float
    bigram: float
    unigram: float
