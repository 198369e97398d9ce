"""Load tiny models with llama.cpp on the CPU, and print the buffer sizes that it reports.

Needs llama-cpp-python and gguf. Prints a JSON line for each model and setting:

    python -m benchmarks.memory.llama_cpp_buffers > benchmarks/memory/measured/llama_cpp_buffers.jsonl
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf  # type: ignore[import-not-found]
import llama_cpp  # type: ignore[import-not-found]
from transformers import AutoConfig

from benchmarks.memory.gguf_models import write_gguf
from moetool.catalogue.names import demo_folder

_COMMON = {
    "vocab_size": 32000,
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 8192,
    "pad_token_id": None,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}
_FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 8, "intermediate_size": 512},
    "olmoe": {"num_experts": 16, "intermediate_size": 256, "num_key_value_heads": 8},
    "qwen3_moe": {
        "num_experts": 16,
        "moe_intermediate_size": 256,
        "intermediate_size": 1024,
        "head_dim": 128,
    },
    "qwen2_moe": {
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 256,
        "shared_expert_intermediate_size": 768,
        "intermediate_size": 1024,
    },
    "deepseek_v2": {
        "num_hidden_layers": 27,
        "n_routed_experts": 8,
        "moe_intermediate_size": 64,
        "intermediate_size": 512,
        "num_key_value_heads": 8,
        "kv_lora_rank": 128,
        "q_lora_rank": None,
        "qk_rope_head_dim": 32,
        "qk_nope_head_dim": 64,
        "v_head_dim": 64,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "deepseek_v3": {
        "n_routed_experts": 16,
        "moe_intermediate_size": 256,
        "intermediate_size": 1024,
        "num_key_value_heads": 8,
        "kv_lora_rank": 256,
        "q_lora_rank": 192,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "dots1": {
        "n_routed_experts": 16,
        "n_shared_experts": 2,
        "moe_intermediate_size": 256,
        "intermediate_size": 1024,
        "num_key_value_heads": 8,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
    },
    "glm4_moe": {
        "n_routed_experts": 16,
        "moe_intermediate_size": 256,
        "intermediate_size": 1024,
        "head_dim": 128,
        "use_qk_norm": True,
        "attention_bias": True,
    },
    "minimax_m2": {"num_local_experts": 16, "intermediate_size": 256, "head_dim": 128},
    "gpt_oss": {
        "num_local_experts": 8,
        "intermediate_size": 512,
        "head_dim": 64,
        "sliding_window": 128,
    },
}
# With few rows of logits, other tensors decide the size of the compute buffer.
_FEW_TOKENS: dict[str, dict[str, Any]] = {
    "mixtral": {"intermediate_size": 1024},
    "olmoe": {"num_experts": 32, "num_experts_per_tok": 8},
    "qwen2_moe": {},
    "qwen3_moe": {"num_experts": 64, "num_experts_per_tok": 8},
    "deepseek_v2": {"n_routed_experts": 16},
    "deepseek_v3": {
        "n_routed_experts": 64,
        "n_group": 8,
        "topk_group": 4,
        "num_experts_per_tok": 8,
    },
    "dots1": {"n_routed_experts": 32},
    "glm4_moe": {"num_experts_per_tok": 8, "use_qk_norm": False, "attention_bias": False},
    "minimax_m2": {"num_local_experts": 64, "num_experts_per_tok": 8},
    "gpt_oss": {"num_local_experts": 32, "num_experts_per_tok": 4},
}
# Context, ubatch, sequences, type of keys and values, flash attention.
_SETTINGS = (
    (4096, 512, 1, "f16", True),
    (4096, 512, 1, "f16", False),
    (4096, 512, 1, "q8_0", True),
    (5000, 128, 8, "f16", True),
    (8192, 1024, 4, "f16", True),
    (8192, 64, 16, "f16", False),
)
_FURTHER_SETTINGS = (
    (1024, 2048, 1, "f16", True),
    (2048, 2048, 3, "q8_0", True),
    (3000, 300, 1, "f16", False),
    (6000, 1, 2, "f16", True),
)
_TYPES = ("f32", "f16", "q8_0")
_CACHE_TYPES = {"f16": gguf.GGMLQuantizationType.F16, "q8_0": gguf.GGMLQuantizationType.Q8_0}
_BUFFER = re.compile(r"(\S+)\s+(model|KV|compute|output) buffer size = +([\d.]+) MiB")
_LOGGED: list[str] = []


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _log(_level: int, text: bytes, _data: ctypes.c_void_p) -> None:
    _LOGGED.append(text.decode(errors="replace"))


def measure(path: Path, setting: tuple[int, int, int, str, bool]) -> dict[str, Any]:
    """Return the buffer sizes that llama.cpp logs for a file, in MiB with two decimals, by kind."""
    context, ubatch, num_sequences, cache_type, is_flash = setting
    _LOGGED.clear()
    model_params = llama_cpp.llama_model_default_params()
    model_params.use_mmap = False
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
    if not model:
        raise RuntimeError("".join(_LOGGED[-8:]))
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_ubatch, params.n_batch = context, ubatch, max(ubatch, num_sequences)
    params.n_seq_max, params.swa_full = num_sequences, False
    params.type_k = params.type_v = int(_CACHE_TYPES[cache_type])
    params.flash_attn_type = 1 if is_flash else 0
    loaded = llama_cpp.llama_init_from_model(model, params)
    if not loaded:
        raise RuntimeError("".join(_LOGGED[-8:]))
    sizes: dict[str, float] = {}
    for where, kind, size in _BUFFER.findall("".join(_LOGGED)):
        sizes[f"{kind} {where}"] = sizes.get(f"{kind} {where}", 0) + float(size)
    llama_cpp.llama_free(loaded)
    llama_cpp.llama_model_free(model)
    return sizes


def main() -> None:
    """Print a line for each model, type of its matrices and setting."""
    llama_cpp.llama_log_set(_log, ctypes.c_void_p(0))
    configs = [AutoConfig.from_pretrained(demo_folder())]
    configs += [AutoConfig.for_model(name, **_COMMON | own) for name, own in _FAMILIES.items()]
    configs += [
        AutoConfig.for_model(name, **_COMMON | _FAMILIES[name] | {"vocab_size": 512} | own)
        for name, own in _FEW_TOKENS.items()
    ]
    for number, config in enumerate(configs):
        types = ("f32", "f16", "q8_0", "mxfp4") if config.model_type == "gpt_oss" else _TYPES
        for tensor_type in types:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "model.gguf")
                write_gguf(config, path, tensor_type=tensor_type)
                has_few_tokens = number > len(_FAMILIES)
                settings = list(() if has_few_tokens else _SETTINGS[:1])
                if tensor_type == "f16":
                    settings = [*_SETTINGS, *(_FURTHER_SETTINGS if has_few_tokens else ())]
                for setting in settings:
                    named = ("context", "ubatch", "sequences", "cache_type", "flash_attention")
                    line = {
                        "llama_cpp_python": version("llama-cpp-python"),
                        "model": "demo" if number == 0 else config.model_type,
                        "config": config.to_diff_dict(),
                        "tensor_type": tensor_type,
                        **dict(zip(named, setting, strict=True)),
                    }
                    try:
                        line["mib"] = measure(path, setting)
                    except (RuntimeError, OSError) as error:
                        sys.stderr.write(f"{line['model']} {tensor_type} {setting}: {error}\n")
                        continue
                    sys.stdout.write(json.dumps(line) + "\n")
                    sys.stdout.flush()


if __name__ == "__main__":
    main()
