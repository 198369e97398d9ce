"""Write the demonstration model as a GGUF file, with its own tokenizer.

Its rows have 128 numbers, and K-quants take blocks of 256: llama.cpp would fall back to other types.
The wide model has zeros in the second half of each row, and computes the same. Heads are wider too:
each pair of rotary dimensions stays at its frequency.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from benchmarks.gguf.convert_families import convert
from moetool.catalogue.names import demo_folder

_NORMAL_TOKEN, _CONTROL_TOKEN = 1, 3
# Digits one by one, then words as GPT-2 divides them.
_PRE_TOKENIZER = "starcoder"


def write_demo(source: tuple[Any, Any], path: Path, *, is_wide: bool = False) -> None:
    """Write the demonstration model in F32.

    Args:
        source: The converter's packages.
        path: The file.
        is_wide: Fill rows with zeros.
    """
    folder = Path(demo_folder())
    if is_wide:
        folder = path.with_suffix("")
        widen_demo().save_pretrained(folder)
    convert(*source, folder, path, "f32", add_vocabulary=_add_vocabulary)


def _add_vocabulary(writer: Any, vocab_size: int) -> None:
    """Give a file the demonstration model's tokenizer, whose kind the converter doesn't know."""
    content = json.loads(Path(demo_folder(), "tokenizer.json").read_text(encoding="utf-8"))
    names = {number: name for name, number in content["model"]["vocab"].items()}
    special = {token["id"]: token["content"] for token in content["added_tokens"]}
    names |= special
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_PRE_TOKENIZER)
    writer.add_token_list([names[number] for number in range(vocab_size)])
    writer.add_token_types(
        [_CONTROL_TOKEN if number in special else _NORMAL_TOKEN for number in range(vocab_size)]
    )
    merges = content["model"]["merges"]
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in merges])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)


def widen_demo() -> MixtralForCausalLM:
    """Return the demonstration model with rows of twice the length that computes the same."""
    narrow = AutoModelForCausalLM.from_pretrained(demo_folder(), dtype=torch.float32)
    config: Any = narrow.config
    head_dim = config.hidden_size // config.num_attention_heads
    wide_config = MixtralConfig(
        **{
            **config.to_dict(),
            "hidden_size": 2 * config.hidden_size,
            "intermediate_size": 2 * config.intermediate_size,
            "head_dim": 2 * head_dim,
            # The mean of squares is half as large.
            "rms_norm_eps": config.rms_norm_eps / 2,
        }
    )
    wide = MixtralForCausalLM(wide_config)
    given = narrow.state_dict()
    # A wide head has frequencies between those of a narrow one: every second is the same.
    half = torch.arange(head_dim // 2)
    rotary = torch.cat([2 * half, head_dim + 2 * half])
    plain = torch.arange(head_dim)
    with torch.no_grad():
        for name, parameter in wide.named_parameters():
            values = given[name]
            parameter.zero_()
            if "_proj" in name and "self_attn" in name:
                is_output = "o_proj" in name
                of_heads = values.T if is_output else values
                heads = of_heads.reshape(-1, head_dim, of_heads.shape[1])
                spread = torch.zeros(len(heads), 2 * head_dim, 2 * config.hidden_size)
                is_rotary = "q_proj" in name or "k_proj" in name
                spread[:, rotary if is_rotary else plain, : config.hidden_size] = heads
                # Scores are divided by the root of the head's width.
                factor = math.sqrt(2) if "q_proj" in name else 1
                flat = spread.reshape(-1, 2 * config.hidden_size) * factor
                parameter.copy_(flat.T if is_output else flat)
            elif name.endswith("gate_up_proj"):
                for number, rows in enumerate(values.chunk(2, dim=1)):
                    start = number * 2 * config.intermediate_size
                    parameter[:, start : start + rows.shape[1], : rows.shape[2]] = rows
            else:
                factor = 1 / math.sqrt(2) if "norm" in name else 1
                parameter[tuple(slice(size) for size in values.shape)] = values * factor
    return wide
