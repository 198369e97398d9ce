"""One tiny mixture of experts, saved as each program saves it."""

from __future__ import annotations

import argparse
import json
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

NUM_LAYERS, NUM_EXPERTS, TOP_K = 2, 4, 2
WIDTH, INNER, VOCABULARY = 8, 16, 32

Tensors = dict[str, torch.Tensor]


def make_tensors() -> Tensors:
    """Return the model's tensors under the names of Mixtral's checkpoints."""
    tensors = {
        "model.embed_tokens.weight": torch.zeros(VOCABULARY, WIDTH),
        "lm_head.weight": torch.zeros(VOCABULARY, WIDTH),
        "model.norm.weight": torch.zeros(WIDTH),
    }
    for layer in range(NUM_LAYERS):
        prefix = f"model.layers.{layer}"
        tensors[f"{prefix}.input_layernorm.weight"] = torch.zeros(WIDTH)
        for name in "qkvo":
            tensors[f"{prefix}.self_attn.{name}_proj.weight"] = torch.zeros(WIDTH, WIDTH)
        block = f"{prefix}.block_sparse_moe"
        tensors[f"{block}.gate.weight"] = torch.zeros(NUM_EXPERTS, WIDTH)
        for expert in range(NUM_EXPERTS):
            for name, shape in {"w1": (INNER, WIDTH), "w2": (WIDTH, INNER)}.items():
                tensors[f"{block}.experts.{expert}.{name}.weight"] = torch.zeros(shape)
    return tensors


# Counted by hand, from the sizes above.
EXPERT = 2 * INNER * WIDTH
OUTSIDE = 2 * VOCABULARY * WIDTH + WIDTH
OF_LAYER = WIDTH + 4 * WIDTH * WIDTH + NUM_EXPERTS * WIDTH
TOTAL = OUTSIDE + NUM_LAYERS * (OF_LAYER + NUM_EXPERTS * EXPERT)
ACTIVE = OUTSIDE + NUM_LAYERS * (OF_LAYER + TOP_K * EXPERT)


def save_safetensors(folder: Path) -> None:
    save_file(make_tensors(), folder / "model.safetensors")


def save_pickled(folder: Path) -> None:
    torch.save(make_tensors(), folder / "pytorch_model.bin")
    torch.save({"learning_rate": 1}, folder / "training_args.bin")


def save_training_run(folder: Path) -> None:
    torch.save({"state_dict": make_tensors(), "optimizer": {}}, folder / "last.ckpt")


# Mistral's own names, from the start of each of Mixtral's.
MISTRAL_NAMES = {
    "model.embed_tokens": "tok_embeddings",
    "model.": "",
    "lm_head": "output",
    "self_attn.": "attention.",
    "_proj.": ".",
    "input_layernorm": "attention_norm",
    "block_sparse_moe": "feed_forward",
}


def rename(tensors: Tensors, names: Mapping[str, str]) -> Tensors:
    renamed = {}
    for name, tensor in tensors.items():
        new = name
        for old, own in names.items():
            new = new.replace(old, own)
        renamed[new] = tensor
    return renamed


def save_mistral(folder: Path) -> None:
    tensors = rename(make_tensors(), MISTRAL_NAMES)
    save_file(tensors, folder / "consolidated.safetensors")
    params = {
        "dim": WIDTH,
        "n_layers": NUM_LAYERS,
        "vocab_size": VOCABULARY,
        "moe": {"num_experts": NUM_EXPERTS, "num_experts_per_tok": TOP_K},
    }
    (folder / "params.json").write_text(json.dumps(params))


def save_with_dcp(tensors: Mapping[str, object], folder: Path) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save

    with warnings.catch_warnings():
        # Of the absent process group, and of what torch itself deprecates.
        warnings.simplefilter("ignore")
        save(dict(tensors), checkpoint_id=folder)


def save_distributed(folder: Path) -> None:
    """Write what FSDP does: the model next to the state of its optimizer."""
    tensors = make_tensors()
    moments = {name: {"exp_avg": torch.zeros_like(each)} for name, each in tensors.items()}
    save_with_dcp({"model": tensors, "optim": {"state": moments}, "step": 3}, folder)


def save_megatron(folder: Path) -> None:
    """Write what Megatron-Core does: each tensor of all layers joined, experts stacked."""
    inner = folder / "iter_0000100"
    tensors = make_tensors()
    joined: dict[str, list[torch.Tensor]] = {}
    for name, tensor in tensors.items():
        joined.setdefault(re.sub(r"layers\.\d+\.|(?<=experts\.)\d+\.", "", name), []).append(tensor)
    stacked: dict[str, Any] = {}
    for name, each in joined.items():
        own = MEGATRON_NAMES[name]
        whole = torch.stack(each) if len(each) > 1 else each[0]
        if "experts" in own:
            whole = whole.reshape(NUM_LAYERS, NUM_EXPERTS, *whole.shape[1:])
        stacked[own] = whole
    stacked["optimizer.state.exp_avg.output_layer.weight"] = torch.zeros(VOCABULARY, WIDTH)
    save_with_dcp(stacked, inner)
    (inner / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    arguments = argparse.Namespace(
        num_layers=NUM_LAYERS,
        num_experts=NUM_EXPERTS,
        moe_router_topk=TOP_K,
        params_dtype=torch.bfloat16,
        untie_embeddings_and_output_weights=True,
    )
    torch.save({"args": arguments, "iteration": 100}, inner / "common.pt")
    (folder / "latest_checkpointed_iteration.txt").write_text("100\n")


MEGATRON_NAMES = {
    "model.embed_tokens.weight": "embedding.word_embeddings.weight",
    "lm_head.weight": "output_layer.weight",
    "model.norm.weight": "decoder.final_layernorm.weight",
    "model.input_layernorm.weight": "decoder.layers.self_attention.linear_qkv.layer_norm_weight",
    **{
        f"model.self_attn.{name}_proj.weight": f"decoder.layers.self_attention.linear_{name}.weight"
        for name in "qkvo"
    },
    "model.block_sparse_moe.gate.weight": "decoder.layers.mlp.router.weight",
    "model.block_sparse_moe.experts.w1.weight": "decoder.layers.mlp.experts.experts.linear_fc1.weight",
    "model.block_sparse_moe.experts.w2.weight": "decoder.layers.mlp.experts.experts.linear_fc2.weight",
}


def save_deepspeed(folder: Path) -> None:
    """Write what DeepSpeed-MoE does: a file for each expert, and one for the rest."""
    inner = folder / "global_step10"
    inner.mkdir()
    (folder / "latest").write_text("global_step10")
    tensors = rename(
        make_tensors(),
        {"block_sparse_moe.experts.": "mlp.deepspeed_moe.experts.deepspeed_experts.",
         "block_sparse_moe.gate.": "mlp.deepspeed_moe.gate.wg."},
    )  # fmt: skip
    experts: dict[tuple[str, str], Tensors] = {}
    rest: Tensors = {}
    for name, tensor in tensors.items():
        found = re.search(r"layers\.(\d+)\..*deepspeed_experts\.(\d+)\.", name)
        (experts.setdefault((found[1], found[2]), {}) if found else rest)[name] = tensor
    for (layer, expert), held in experts.items():
        torch.save(held, inner / f"layer_{layer}_expert_{expert}_mp_rank_00_model_states.pt")
    whole = {
        "module": rest,
        "optimizer": None,
        "args": argparse.Namespace(lr=0.1),
        "ds_version": "0",
    }
    torch.save(whole, inner / "mp_rank_00_model_states.pt")


ORBAX_NAMES = {
    "model.embed_tokens.weight": "token_embedder.embedding",
    "lm_head.weight": "decoder.logits_dense.kernel",
    "model.norm.weight": "decoder.decoder_norm.scale",
    "model.input_layernorm.weight": "decoder.layers.pre_self_attention_layer_norm.scale",
    **{
        f"model.self_attn.{name}_proj.weight": f"decoder.layers.self_attention.{name}.kernel"
        for name in "qkvo"
    },
    "model.block_sparse_moe.gate.weight": "decoder.layers.MoeBlock_0.gate.kernel",
    "model.block_sparse_moe.experts.w1.weight": "decoder.layers.MoeBlock_0.wi_0",
    "model.block_sparse_moe.experts.w2.weight": "decoder.layers.MoeBlock_0.wo",
}


def save_orbax(folder: Path) -> None:
    """Write what Orbax does without OCDBT for a model of MaxText, layers along the second axis."""
    inner = folder / "0" / "items"
    inner.mkdir(parents=True)
    (inner / "_METADATA").write_text("{}")
    shapes: dict[str, list[int]] = {}
    for name, tensor in make_tensors().items():
        own = ORBAX_NAMES[re.sub(r"layers\.\d+\.|(?<=experts\.)\d+\.", "", name)]
        shape = list(reversed(tensor.shape))
        if "MoeBlock_0.w" in own:
            shape.insert(0, NUM_EXPERTS)
        if ".layers." in own:
            shape.insert(1, NUM_LAYERS)
        shapes[f"params.params.{own}"] = shape
    shapes["opt_state.mu.token_embedder.embedding"] = [VOCABULARY, WIDTH]
    for number, (name, shape) in enumerate(shapes.items()):
        array = inner / name
        array.mkdir()
        # Both versions of Zarr.
        described: dict[str, object] = {"shape": shape, "zarr_format": 2, "dtype": "<f4"}
        if number % 2:
            described = {"shape": shape, "zarr_format": 3, "data_type": "float32"}
        (array / ("zarr.json" if number % 2 else ".zarray")).write_text(json.dumps(described))


SAVE: dict[str, Callable[[Path], None]] = {
    "safetensors": save_safetensors,
    "pytorch_model.bin": save_pickled,
    "a training run": save_training_run,
    "Mistral": save_mistral,
    "DCP": save_distributed,
    "Megatron": save_megatron,
    "DeepSpeed": save_deepspeed,
    "Orbax": save_orbax,
}
# Those whose files state top-k.
STATING = {"Mistral": "params.json", "Megatron": "common.pt"}
