"""The model and its training."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

from tools.train_demo.tokenizer import CONTEXT_TOKENS, VOCAB_SIZE, TokenIds

BALANCE_LOSS_WEIGHT = 0.01


def build_model(tokenizer: PreTrainedTokenizerFast) -> MixtralForCausalLM:
    """Return the untrained model: 6 layers of 8 experts, top-2, 2.9 M parameters in float32."""
    config = MixtralConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        router_aux_loss_coef=BALANCE_LOSS_WEIGHT,
    )
    model = MixtralForCausalLM(config)
    model.set_experts_implementation("eager")
    return model


def load_balancing_loss(router_logits: torch.Tensor, *, top_k: int) -> torch.Tensor:
    """Return one layer's Switch loss `E * sum(f_e * P_e)`, 1 when balanced (arXiv 2101.03961, eq. 4).

    transformers' own loss pools the layers, so that one layer's hot expert can hide behind
    another layer's cold one; training on the mean of the layers' losses keeps every layer alive.
    """
    num_experts = router_logits.shape[-1]
    probabilities = router_logits.float().softmax(-1)  # (num_tokens, num_experts)
    chosen = router_logits.topk(top_k, dim=-1).indices  # (num_tokens, top_k)
    load = torch.bincount(chosen.flatten(), minlength=num_experts) / chosen.numel()
    return num_experts * (load * probabilities.mean(0)).sum()


def sample_batch(
    streams: list[TokenIds], *, batch_size: int, bos: int, rng: np.random.Generator
) -> torch.Tensor:
    """Return random crops of random domains, each after `<s>`: `(batch_size, CONTEXT_TOKENS)`."""
    rows = []
    for domain in rng.integers(len(streams), size=batch_size):
        stream = streams[domain]
        start = rng.integers(len(stream) - CONTEXT_TOKENS)
        rows.append(np.concatenate([[bos], stream[start : start + CONTEXT_TOKENS - 1]]))
    return torch.from_numpy(np.stack(rows))


def train(
    model: MixtralForCausalLM,
    streams: list[TokenIds],
    *,
    bos: int,
    steps: int,
    batch_size: int,
    seed: int,
) -> None:
    """Train in place: AdamW, linear warm-up, cosine decay, per-layer load-balancing loss."""
    peak_lr, warmup = 4e-3, max(1, steps // 20)
    rng = np.random.default_rng(seed)
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=peak_lr,
        betas=(0.9, 0.95),
    )
    top_k = model.config.num_experts_per_tok
    model.train()
    start = time.monotonic()
    for step in range(steps):
        progress = max(0.0, (step - warmup) / max(1, steps - warmup))
        lr = peak_lr * min(
            (step + 1) / warmup, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
        )
        for group in optimizer.param_groups:
            group["lr"] = lr
        ids = sample_batch(streams, batch_size=batch_size, bos=bos, rng=rng).to(model.device)
        output = model.model(input_ids=ids, output_router_logits=True, use_cache=False)
        logits = model.lm_head(output.last_hidden_state[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        balance = torch.stack(
            [load_balancing_loss(layer, top_k=top_k) for layer in output.router_logits]
        ).mean()
        (loss + BALANCE_LOSS_WEIGHT * balance).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0 or step == steps - 1:
            seconds = time.monotonic() - start
            print(f"step {step} loss {loss:.3f} balance {balance:.3f} {seconds:.0f} s", flush=True)
    model.eval()
