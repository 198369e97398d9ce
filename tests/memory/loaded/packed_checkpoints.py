"""Tiny Mixtrals whose files are laid out as published formats lay them out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.anatomy import header_files as layouts
from tests.anatomy.header_files import Layout, Tensors
from tests.checkpoint.safetensors_files import write_file
from tests.memory.saved_configs import save_config

HIDDEN, WIDTH, VOCABULARY, NUM_EXPERTS, NUM_LAYERS = 128, 256, 256, 8, 2
SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": WIDTH,
    "vocab_size": VOCABULARY,
    "num_local_experts": NUM_EXPERTS,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "tie_word_embeddings": False,
    "max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Format:
    """A format: the layout of a matrix, and its statement in config.json."""

    layout: Layout
    stated: Mapping[str, Any]


GROUPS_OF_32 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
FORMATS = {
    "awq": Format(
        layouts.awq, {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 64}}
    ),
    "gptq": Format(
        layouts.gptq(4, 128),
        {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}},
    ),
    "mlx": Format(layouts.mlx(4), {"quantization": {"bits": 4, "group_size": 64}}),
    "compressed-tensors": Format(
        layouts.pack_quantized(4, 32),
        {
            "quantization_config": {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {"group_0": {"weights": GROUPS_OF_32, "targets": ["Linear"]}},
            }
        },
    ),
    "modelopt": Format(
        layouts.nvfp4_modelopt,
        {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}},
    ),
    # As NVIDIA publishes some: another file than config.json says it.
    "unstated format": Format(layouts.nvfp4_modelopt, {}),
}


def lay_out(layout: Layout) -> Tensors:
    """Return a tiny Mixtral's tensors, with all matrices packed except router and vocabulary."""
    tensors: Tensors = {
        "model.embed_tokens.weight": ("F16", [VOCABULARY, HIDDEN]),
        "lm_head.weight": ("F16", [VOCABULARY, HIDDEN]),
        "model.norm.weight": ("F16", [HIDDEN]),
    }
    for layer in range(NUM_LAYERS):
        path = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors |= layout(f"{path}.self_attn.{name}", HIDDEN, HIDDEN)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{path}.{name}.weight"] = ("F16", [HIDDEN])
        tensors[f"{path}.block_sparse_moe.gate.weight"] = ("F16", [NUM_EXPERTS, HIDDEN])
        for expert in range(NUM_EXPERTS):
            of_expert = f"{path}.block_sparse_moe.experts.{expert}"
            tensors |= layout(f"{of_expert}.w1", WIDTH, HIDDEN)
            tensors |= layout(f"{of_expert}.w3", WIDTH, HIDDEN)
            tensors |= layout(f"{of_expert}.w2", HIDDEN, WIDTH)
    return tensors


def save_packed(name: str, folder: Path, *, more: Tensors | None = None) -> str:
    """Save a tiny Mixtral in a format, with further tensors, and return its folder."""
    form = FORMATS[name]
    save_config("mixtral", folder, **SIZES, **form.stated, dtype="float16")
    write_file(folder / "model.safetensors", {**lay_out(form.layout), **(more or {})})
    return str(folder)


def count_packed(name: str) -> int:
    """Return the bytes of a format's tensors, from their shapes."""
    return sum(
        tensor.num_bytes for tensor in layouts.make_headers(lay_out(FORMATS[name].layout)).tensors
    )
