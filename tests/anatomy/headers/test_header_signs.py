"""Checkpoints whose names show no experts are read by their own layout, or not called dense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from moetool.anatomy.headers.table import HeaderTable, count_headers
from moetool.anatomy.parameters import ActiveDefinition, ActiveRange
from moetool.errors import InputError
from moetool.inspection.inspect import inspect_model
from moetool.report.inspect.words import word_experts, word_layers
from tests.anatomy import header_files as layouts
from tests.anatomy.header_files import Tensors, make_headers

HIDDEN, INNER, VOCAB, NUM_LAYERS, NUM_EXPERTS, TOP_K = 64, 96, 128, 2, 8, 2
CONFIG: dict[str, object] = {"num_hidden_layers": NUM_LAYERS, "hidden_size": HIDDEN}


def linear(name: str, outputs: int, inputs: int) -> Tensors:
    return layouts.plain(name, outputs, inputs)


def make_dense_part() -> Tensors:
    tensors = linear("model.embed_tokens", VOCAB, HIDDEN) | linear("lm_head", VOCAB, HIDDEN)
    for number in range(NUM_LAYERS):
        tensors |= linear(f"model.layers.{number}.self_attn.qkv_proj", 3 * HIDDEN, HIDDEN)
        tensors |= linear(f"model.layers.{number}.self_attn.o_proj", HIDDEN, HIDDEN)
    return tensors


def make_mlps(*names: str, shape: tuple[int, ...] = (INNER, HIDDEN)) -> Tensors:
    return {
        f"model.layers.{number}.{name}.weight": ("BF16", list(shape))
        for number in range(NUM_LAYERS)
        for name in names
    }


def count(tensors: Tensors, config: dict[str, object] = CONFIG) -> HeaderTable:
    return count_headers(make_headers(make_dense_part() | tensors), config)


EACH = range(NUM_EXPERTS)
# In what is not moetool's to know: what suggests experts, and what is said of it.
DOUBTFUL: dict[str, tuple[Tensors, str]] = {
    "a stack": (make_mlps("mlp.w1", shape=(NUM_EXPERTS, INNER, HIDDEN)), "one matrix for each"),
    "numbered modules": (make_mlps(*(f"ff.{n}.up" for n in EACH)), "siblings of the same shape"),
    "two of them": (make_mlps("ff.0.up", "ff.1.up"), "siblings of the same shape"),
    "numbers at the end of words": (make_mlps(*(f"ff{n}.up" for n in EACH)), "siblings"),
    "numbered matrices": (make_mlps(*(f"mlp.up.{n}" for n in EACH)), "siblings"),
    "a list of ffns": (make_mlps("ffns.up"), "may belong to experts"),
    "an unusual place of experts": (make_mlps("ff_experts_fused"), "may belong to experts"),
    "a router alone": (make_mlps("mlp.up_proj", "mlp.router"), "may belong to experts"),
}


@pytest.mark.parametrize("kind", DOUBTFUL)
def test_what_may_be_experts_is_not_counted_as_dense(kind: str) -> None:
    tensors, words = DOUBTFUL[kind]
    found = count(tensors)

    assert found.experts_unknown is not None
    assert words in found.experts_unknown
    assert found.table.count_active(ActiveDefinition.ALL) is None
    assert found.active_unknown == found.experts_unknown


@pytest.mark.parametrize("field", ["num_experts", "n_routed_experts", "moe_num_experts"])
def test_experts_that_config_json_states_and_no_name_shows_leave_doubt(field: str) -> None:
    config = {**CONFIG, field: NUM_EXPERTS}
    found = count(make_mlps("mlp.gate_proj", "mlp.up_proj"), config)

    assert found.experts_unknown is not None
    assert f"{field} is {NUM_EXPERTS}" in found.experts_unknown


@pytest.mark.parametrize(
    "names",
    [
        ("mlp.gate_proj", "mlp.up_proj"),
        ("feed_forward.w1", "feed_forward.w3"),
        ("layer.1.DenseReluDense.wi_0", "layer.1.DenseReluDense.wi_1"),
        ("feed_forward1.linear1", "feed_forward2.linear1"),
        ("mlp.0", "mlp.2"),
        ("intermediate.dense",),
    ],
)
def test_the_mlps_of_dense_models_are_no_experts(names: tuple[str, ...]) -> None:
    found = count(make_mlps(*names))

    assert (found.experts_unknown, found.unclear) == (None, None)
    active = found.table.count_active(ActiveDefinition.ALL)
    assert active == ActiveRange(found.table.total, found.table.total)


def test_a_matrix_whose_name_says_nothing_may_be_run_or_not() -> None:
    found = count(make_mlps("mlp.up_proj") | make_mlps("thing"))

    num_unclear = NUM_LAYERS * INNER * HIDDEN
    total = found.table.total
    assert found.unclear == "model.layers.0.thing.weight"
    assert found.table.count_active(ActiveDefinition.ALL) == ActiveRange(total - num_unclear, total)


def save_folder(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    save_file(tensors, folder / "rank0.safetensors")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def make_tensorrt() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return what `convert_checkpoint.py` of TensorRT-LLM's examples makes of a Mixtral."""
    shapes = {
        "transformer.vocab_embedding.weight": (VOCAB, HIDDEN),
        "transformer.ln_f.weight": (HIDDEN,),
        "lm_head.weight": (VOCAB, HIDDEN),
    }
    for number in range(NUM_LAYERS):
        prefix = f"transformer.layers.{number}"
        shapes |= {
            f"{prefix}.attention.qkv.weight": (2 * HIDDEN, HIDDEN),
            f"{prefix}.attention.dense.weight": (HIDDEN, HIDDEN),
            f"{prefix}.input_layernorm.weight": (HIDDEN,),
            f"{prefix}.post_layernorm.weight": (HIDDEN,),
            f"{prefix}.mlp.router.weight": (NUM_EXPERTS, HIDDEN),
            f"{prefix}.mlp.fc.weight": (NUM_EXPERTS, 2 * INNER, HIDDEN),
            f"{prefix}.mlp.proj.weight": (NUM_EXPERTS, HIDDEN, INNER),
        }
    config = {
        "architecture": "MixtralForCausalLM",
        "dtype": "float16",
        "hidden_size": HIDDEN,
        "num_hidden_layers": NUM_LAYERS,
        "vocab_size": VOCAB,
        "moe": {"num_experts": NUM_EXPERTS, "top_k": TOP_K, "normalization_mode": 1},
        "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1},
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
    }
    return {name: torch.zeros(*shape).half() for name, shape in shapes.items()}, config


def test_a_tensorrt_llm_checkpoint_is_read_by_its_own_layout(tmp_path: Path) -> None:
    tensors, config = make_tensorrt()
    save_folder(tmp_path, tensors, config)

    inspected = inspect_model(str(tmp_path))

    assert inspected.parameters is not None
    total = sum(tensor.numel() for tensor in tensors.values())
    experts = NUM_LAYERS * NUM_EXPERTS * 3 * HIDDEN * INNER
    assert inspected.parameters.total == total
    assert inspected.parameters.components["routed_experts"] == experts
    assert inspected.parameters.components["router"] == NUM_LAYERS * NUM_EXPERTS * HIDDEN
    active = inspected.parameters.active[ActiveDefinition.ALL]
    assert active is not None
    assert active.exact == total - experts * (NUM_EXPERTS - TOP_K) // NUM_EXPERTS
    assert (inspected.num_moe_layers, inspected.num_experts, inspected.top_k) == (2, 8, 2)
    assert inspected.quantization is None
    assert "is a TensorRT-LLM configuration" in inspected.notes[0]


def test_a_dense_layer_of_a_tensorrt_llm_checkpoint_has_an_mlp() -> None:
    tensors, config = make_tensorrt()
    named: Tensors = {name: ("F16", list(tensor.shape)) for name, tensor in tensors.items()}
    for name in ("router", "fc", "proj"):
        del named[f"transformer.layers.0.mlp.{name}.weight"]
    named |= linear("transformer.layers.0.mlp.fc", 2 * INNER, HIDDEN)

    found = count_headers(make_headers(named), config)

    assert found.num_experts == {("decoder", 1): NUM_EXPERTS}
    assert found.experts_unknown is None


def test_four_bit_weights_of_tensorrt_llm_are_not_counted_as_half_floats() -> None:
    tensors, config = make_tensorrt()
    named: Tensors = {name: ("F16", list(tensor.shape)) for name, tensor in tensors.items()}
    scales = "transformer.layers.0.mlp.fc.weights_scaling_factor"
    named[scales] = ("F16", [NUM_EXPERTS, 1, 2 * INNER])

    found = count_headers(make_headers(named), config)

    assert found.unknown is not None
    assert "transformer.layers.0.mlp.fc.weight" in found.unknown


def test_a_tensorrt_llm_checkpoint_of_several_gpus_is_refused_as_that(tmp_path: Path) -> None:
    tensors, config = make_tensorrt()
    save_folder(tmp_path, tensors, config)
    save_file(tensors, tmp_path / "rank1.safetensors")

    with pytest.raises(InputError, match="separate parts for 2 GPUs, as TensorRT-LLM"):
        inspect_model(str(tmp_path))


def make_mlx() -> Tensors:
    """Return the 4-bit tensors that `mlx_lm.convert` makes of a Qwen3-MoE."""

    def quantize(name: str, *shape: int) -> Tensors:
        *rows, width = shape
        return {
            f"{name}.weight": ("U32", [*rows, width // 8]),
            f"{name}.scales": ("BF16", [*rows, width // 32]),
            f"{name}.biases": ("BF16", [*rows, width // 32]),
        }

    tensors = quantize("model.embed_tokens", VOCAB, HIDDEN) | quantize("lm_head", VOCAB, HIDDEN)
    tensors["model.norm.weight"] = ("BF16", [HIDDEN])
    for number in range(NUM_LAYERS):
        prefix = f"model.layers.{number}"
        for name, rows in {"q_proj": 64, "k_proj": 32, "v_proj": 32, "o_proj": HIDDEN}.items():
            tensors |= quantize(f"{prefix}.self_attn.{name}", rows, HIDDEN)
        tensors |= {f"{prefix}.self_attn.{n}.weight": ("BF16", [16]) for n in ("q_norm", "k_norm")}
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{name}.weight"] = ("BF16", [HIDDEN])
        tensors |= quantize(f"{prefix}.mlp.gate", NUM_EXPERTS, HIDDEN)
        for name in ("gate_proj", "up_proj"):
            tensors |= quantize(f"{prefix}.mlp.switch_mlp.{name}", NUM_EXPERTS, INNER, HIDDEN)
        tensors |= quantize(f"{prefix}.mlp.switch_mlp.down_proj", NUM_EXPERTS, HIDDEN, INNER)
    return tensors


MLX_CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": HIDDEN,
    "intermediate_size": 128,
    "moe_intermediate_size": INNER,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCAB,
    "num_experts": NUM_EXPERTS,
    "num_experts_per_tok": TOP_K,
    "mlp_only_layers": [],
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "quantization": {"group_size": 32, "bits": 4},
}


def test_mlx_checkpoints_differ_from_the_model_in_scales_alone(tmp_path: Path) -> None:
    dtypes = {"U32": torch.int32, "BF16": torch.bfloat16}
    tensors = {n: torch.zeros(s, dtype=dtypes[d]) for n, (d, s) in make_mlx().items()}
    as_words = {
        name: tensor.view(torch.uint32) if tensor.dtype is torch.int32 else tensor
        for name, tensor in tensors.items()
    }
    save_file(as_words, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(MLX_CONFIG), encoding="utf-8")

    inspected = inspect_model(str(tmp_path))

    assert inspected.files is not None
    assert inspected.files.differences is not None
    assert [row.what for row in inspected.files.differences] == ["scales of quantized weights"]
    assert all(row.params == row.file_params for row in inspected.rows)


@pytest.mark.parametrize(
    "name", ["mlp.switch_mlp", "block_sparse_moe.switch_mlp", "mlp.switch_glu"]
)
def test_mlx_headers_alone_show_the_experts(name: str) -> None:
    tensors = {key.replace("mlp.switch_mlp", name): value for key, value in make_mlx().items()}

    found = count_headers(make_headers(tensors), MLX_CONFIG)

    assert set(found.num_experts.values()) == {NUM_EXPERTS}
    assert found.top_k == TOP_K
    assert found.active_unknown is None


def test_unknown_experts_are_shown_as_unknown(tmp_path: Path) -> None:
    tensors, words = DOUBTFUL["a stack"]
    del words
    zeros = {
        name: torch.zeros(shape, dtype=torch.bfloat16)
        for name, (_, shape) in (make_dense_part() | tensors).items()
    }
    save_folder(tmp_path, zeros, CONFIG)

    inspected = inspect_model(str(tmp_path), source="headers")

    assert (inspected.num_moe_layers, inspected.num_experts, inspected.top_k) == (None, None, None)
    assert inspected.parameters is not None
    assert inspected.parameters.expert_share is None
    assert set(inspected.parameters.active.values()) == {None}
    assert word_experts(inspected) == "unknown"
    assert "dense" not in word_layers(inspected)
    assert any("model.layers.0.mlp.w1.weight (8 x 96 x 64)" in note for note in inspected.notes)
