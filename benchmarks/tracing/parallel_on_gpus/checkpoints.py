"""Checkpoints of random weights, in published geometries that are cut to a few layers."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import transformers

from benchmarks.tracing.geometries import make_cut_config
from benchmarks.tracing.parallel_on_gpus.devices import DEVICE, HAS_GPU, free
from moetool.catalogue.names import demo_folder

NAMES = ("Qwen3-30B-A3B, 4 layers", "Mixtral-8x7B, 2 layers", "DeepSeek-V2-Lite, 4 layers")
# Those of the demonstration model's tokenizer.
SPECIAL_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# Of models that run on the CPU.
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
}


def write_checkpoint(name: str, folder: Path) -> None:
    """Write a checkpoint of random weights with the demonstration model's tokenizer."""
    config = make_cut_config(name, **SPECIAL_TOKENS, **({} if HAS_GPU else TINY))
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for file in demo_folder().glob("tokenizer*"):
        shutil.copy(file, folder)
    del model
    free()
