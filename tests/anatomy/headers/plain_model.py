"""The tensors of a plain checkpoint with experts."""

from __future__ import annotations

from collections.abc import Mapping

from moetool.anatomy.headers.table import HeaderTable, count_headers
from tests.anatomy import header_files as layouts
from tests.anatomy.header_files import Tensors, make_headers

HIDDEN, INNER, VOCAB, NUM_LAYERS, NUM_EXPERTS = 64, 96, 256, 2, 4
CONFIG: dict[str, object] = {
    "num_hidden_layers": NUM_LAYERS,
    "num_local_experts": NUM_EXPERTS,
    "num_experts_per_tok": 2,
}
ATTENTION = 4 * HIDDEN * HIDDEN
EXPERTS = NUM_EXPERTS * 3 * HIDDEN * INNER
LAYER = ATTENTION + EXPERTS + NUM_EXPERTS * HIDDEN + 2 * HIDDEN


def linear(name: str, outputs: int, inputs: int) -> Tensors:
    return layouts.plain(name, outputs, inputs)


def layer(prefix: str) -> Tensors:
    """Return the tensors of a routed layer."""
    tensors: Tensors = {}
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        tensors |= linear(f"{prefix}.self_attn.{name}", HIDDEN, HIDDEN)
    for expert in range(NUM_EXPERTS):
        for name in ("gate_proj", "up_proj"):
            tensors |= linear(f"{prefix}.mlp.experts.{expert}.{name}", INNER, HIDDEN)
        tensors |= linear(f"{prefix}.mlp.experts.{expert}.down_proj", HIDDEN, INNER)
    tensors |= linear(f"{prefix}.mlp.gate", NUM_EXPERTS, HIDDEN)
    for name in ("input_layernorm", "post_attention_layernorm"):
        tensors[f"{prefix}.{name}.weight"] = ("BF16", [HIDDEN])
    return tensors


def model() -> Tensors:
    """Return the tensors of a small model."""
    tensors = linear("model.embed_tokens", VOCAB, HIDDEN) | linear("lm_head", VOCAB, HIDDEN)
    tensors["model.norm.weight"] = ("BF16", [HIDDEN])
    for number in range(NUM_LAYERS):
        tensors |= layer(f"model.layers.{number}")
    return tensors


TOTAL = 2 * VOCAB * HIDDEN + HIDDEN + NUM_LAYERS * LAYER


def count(tensors: Tensors, config: Mapping[str, object] = CONFIG) -> HeaderTable:
    return count_headers(make_headers(tensors), config)
