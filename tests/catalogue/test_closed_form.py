"""Arithmetic on published shapes gives the totals of stand-in classes and dense models.

The shapes are written out here once more, as the vendors publish them, with no configuration of
the catalogue and no class of transformers involved.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from moetool.catalogue.published import read_published_models
from tests.catalogue.totals import TOTALS


def count_attention(hidden: int, *, heads: int, kv_heads: int, head_dim: int = 128) -> int:
    """Return the parameters of grouped-query attention without biases or norms."""
    return 2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim


def count_gated_mlp(hidden: int, width: int) -> int:
    """Return the parameters of a gated MLP: gate, up and down."""
    return 3 * hidden * width


def count_llama(
    *, hidden: int, width: int, layers: int, heads: int, kv_heads: int, vocab: int
) -> int:
    attention = count_attention(hidden, heads=heads, kv_heads=kv_heads, head_dim=hidden // heads)
    layer = attention + count_gated_mlp(hidden, width) + 2 * hidden
    return layers * layer + hidden + 2 * vocab * hidden


def count_llama_2_70b() -> int:
    return count_llama(hidden=8192, width=28672, layers=80, heads=64, kv_heads=8, vocab=32000)


def count_llama_3_1_405b() -> int:
    return count_llama(hidden=16384, width=53248, layers=126, heads=128, kv_heads=8, vocab=128256)


def count_grok_1() -> int:
    """Return Grok-1's parameters: 64 layers of 8 experts, four norms each, a tied head."""
    hidden = 6144
    experts = 8 * count_gated_mlp(hidden, 32768) + 8 * hidden
    layer = count_attention(hidden, heads=48, kv_heads=8) + experts + 4 * hidden
    return 64 * layer + hidden + 131072 * hidden


def count_snowflake_arctic() -> int:
    """Return Arctic's parameters: 35 layers of 128 experts with a residual MLP, three norms."""
    hidden = 7168
    experts = 128 * count_gated_mlp(hidden, 4864) + 128 * hidden
    residual = count_gated_mlp(hidden, hidden)
    layer = count_attention(hidden, heads=56, kv_heads=8) + experts + residual + 3 * hidden
    return 35 * layer + hidden + 2 * 32000 * hidden


def count_ling_lite() -> int:
    """Return Ling-lite's parameters: 28 layers of 64 routed and 2 shared experts."""
    hidden = 2048
    experts = (64 + 2) * count_gated_mlp(hidden, 1408) + 64 * hidden
    layer = count_attention(hidden, heads=16, kv_heads=4) + experts + 2 * hidden
    return 28 * layer + hidden + 2 * 126464 * hidden


def count_ling_mini() -> int:
    """Return Ling-mini-2.0's parameters: a dense layer, 19 of 256 routed and a shared expert."""
    hidden = 2048
    attention = count_attention(hidden, heads=16, kv_heads=4) + 2 * 128
    experts = (256 + 1) * count_gated_mlp(hidden, 512) + 256 * hidden
    layers = 20 * (attention + 2 * hidden) + count_gated_mlp(hidden, 5120) + 19 * experts
    return layers + hidden + 2 * 157184 * hidden


def count_deepseek_moe_16b() -> int:
    """Return DeepSeekMoE 16B's parameters: a dense layer, 27 of 64 routed and 2 shared experts."""
    hidden = 2048
    attention = count_attention(hidden, heads=16, kv_heads=16)
    experts = (64 + 2) * count_gated_mlp(hidden, 1408) + 64 * hidden
    layers = 28 * (attention + 2 * hidden) + count_gated_mlp(hidden, 10944) + 27 * experts
    return layers + hidden + 2 * 102400 * hidden


def count_kimi_k2() -> int:
    """Return Kimi-K2's parameters: latent attention, a dense layer, 60 of 384 + 1 experts."""
    hidden, heads, query_rank, key_value_rank = 7168, 64, 1536, 512
    queries = hidden * query_rank + query_rank + query_rank * heads * (128 + 64)
    keys_and_values = hidden * (key_value_rank + 64) + key_value_rank
    keys_and_values += key_value_rank * heads * (128 + 128)
    attention = queries + keys_and_values + heads * 128 * hidden
    experts = (384 + 1) * count_gated_mlp(hidden, 2048) + 384 * hidden
    layers = 61 * (attention + 2 * hidden) + count_gated_mlp(hidden, 18432) + 60 * experts
    return layers + hidden + 2 * 163840 * hidden


def count_minimax_01() -> int:
    """Return the parameters of MiniMax-Text-01 and M1: 70 lightning layers, 10 of attention."""
    hidden, width = 6144, 64 * 128
    # Queries, keys, values, output gate and output; the norm is of the heads' width.
    lightning = 5 * hidden * width + width
    attention = count_attention(hidden, heads=64, kv_heads=8)
    experts = 32 * count_gated_mlp(hidden, 9216) + 32 * hidden
    layers = 70 * lightning + 10 * attention + 80 * (experts + 2 * hidden)
    return layers + hidden + 2 * 200064 * hidden


def count_minimax_m3() -> int:
    """Return the parameters of MiniMax-M3's text model: 3 dense layers, 57 sparse ones.

    A sparse layer also has an indexer of 4 heads that share one key, both with a norm.
    """
    hidden = 6144
    attention = count_attention(hidden, heads=64, kv_heads=4) + 2 * 128
    indexer = 4 * 128 * hidden + 128 * hidden + 2 * 128
    experts = (128 + 1) * count_gated_mlp(hidden, 3072) + 128 * hidden
    layers = 60 * (attention + 2 * hidden)
    layers += 3 * count_gated_mlp(hidden, 12288) + 57 * (indexer + experts)
    return layers + hidden + 2 * 200064 * hidden


def count_switch_c() -> int:
    """Return Switch-C's parameters: two stacks of 15 layers with 2048 experts each, a tied head."""
    hidden, heads, head_dim = 2080, 30, 64
    attention = 4 * hidden * heads * head_dim
    experts = 2048 * 2 * hidden * 6144 + 2048 * hidden
    # The decoder also attends to what the encoder made. Each stack has biases by distance once.
    encoder = 15 * (attention + experts + 2 * hidden) + hidden + 32 * heads
    decoder = 15 * (2 * attention + experts + 3 * hidden) + hidden + 32 * heads
    return encoder + decoder + 32128 * hidden


# By short name: how it is counted by hand, and its layers.
BY_HAND: dict[str, tuple[Callable[[], int], int]] = {
    "deepseek-moe-16b": (count_deepseek_moe_16b, 28),
    "grok-1": (count_grok_1, 64),
    "kimi-k2": (count_kimi_k2, 61),
    "ling-lite": (count_ling_lite, 28),
    "ling-mini-2.0": (count_ling_mini, 20),
    "llama-2-70b": (count_llama_2_70b, 80),
    "llama-3.1-405b": (count_llama_3_1_405b, 126),
    "minimax-m1-80k": (count_minimax_01, 80),
    "minimax-m3": (count_minimax_m3, 60),
    "minimax-text-01": (count_minimax_01, 80),
    "snowflake-arctic": (count_snowflake_arctic, 35),
    "switch-c-2048": (count_switch_c, 30),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_arithmetic_on_published_shapes_gives_the_same_total(name: str) -> None:
    count_by_hand, num_layers = BY_HAND[name]
    extra = read_published_models()[name].extra_parameters
    total = TOTALS[name] + num_layers * sum(row.params_per_layer for row in extra)
    assert count_by_hand() == total


def test_every_stand_in_and_every_dense_model_is_counted_by_hand() -> None:
    models = read_published_models().values()
    assert set(BY_HAND) == {
        model.name for model in models if model.counted_as or model.kind == "dense"
    }
