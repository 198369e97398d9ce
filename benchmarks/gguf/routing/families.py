"""Compare the decisions of llama.cpp with those of transformers, for tiny models of ten families.

llama.cpp's own converter writes the files, in F32. Then wrong conversions are planted, each of which
has to be noticed. Needs llama-cpp-python, gguf and a folder of llama.cpp (see `convert_families`):

    python -m benchmarks.gguf.routing.families vendor/llama.cpp [FAMILY ...]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gguf.convert_families import OWN, WIDE, convert, import_converter
from benchmarks.gguf.routing.compare import Comparison, compare_file
from tests.families.tiny.models import build_family

_NUM_PROMPTS, _PROMPT_TOKENS, _NUM_NEW_TOKENS = 3, 48, 6
# Prompts take several evaluations.
_UBATCH = 20
_FIRST_TOKEN, _VOCAB_SIZE = 3, 256


@dataclass(frozen=True)
class Case:
    """A tiny model.

    Attributes:
        family: As tests call it.
        overrides: Fields of its configuration.
    """

    family: str
    overrides: dict[str, Any]


# gpt-oss, DeepSeek and others have fields in their checkpoints that transformers leaves out.
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 4096,
}
_V3 = {"scoring_func": "sigmoid", "n_group": 2, "topk_group": 1}
CASES = {
    "mixtral": Case("mixtral", {"sliding_window": None}),
    "qwen2_moe": Case("qwen2_moe", {}),
    "qwen3_moe": Case("qwen3_moe", {"norm_topk_prob": True}),
    # Norms of keys are as wide as those of queries in llama.cpp, as in its checkpoints.
    "olmoe": Case("olmoe", {"num_key_value_heads": 4}),
    "deepseek_v2": Case("deepseek_v2", {"topk_method": "greedy", "n_group": 1}),
    "deepseek_v3": Case("deepseek_v3", _V3),
    "gpt_oss": Case("gpt_oss", {"rope_parameters": {**_YARN, "truncate": True}}),
    "granitemoe": Case("granitemoe", {"shared_intermediate_size": 0}),
    "glm4_moe": Case("glm4_moe", {}),
    "llama4_text": Case("llama4_text", {}),
}


def _leave_halves(model: Any) -> None:
    """Undo beforehand that the converter interleaves the rotary halves of queries."""
    for layer in model.model.layers:
        weight = layer.self_attn.q_proj.weight
        pairs = weight.reshape(model.config.num_attention_heads, -1, 2, weight.shape[1])
        weight.copy_(pairs.swapaxes(1, 2).reshape(weight.shape).clone())


def _swap_experts(model: Any) -> None:
    """Swap two experts of a layer, and leave its router as it is."""
    for parameter in model.model.layers[1].mlp.experts.parameters():
        parameter[[0, 1]] = parameter[[1, 0]].clone()


def _swap_router_rows(model: Any) -> None:
    """Swap the names of two experts of the last layer."""
    layer = model.model.layers[-1].mlp
    for parameter in (*layer.gate.parameters(), *layer.experts.parameters()):
        parameter[[0, 1]] = parameter[[1, 0]].clone()


def _turn_biases(model: Any) -> None:
    """Give each expert the bias of another one."""
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(buffer.roll(1))


# Each has to be noticed. The last three are llama.cpp's own: what its converter or graph makes of
# fields that checkpoints of these families may have.
FAULTS: dict[str, tuple[Case, Callable[[Any], None] | None]] = {
    "halves of queries not interleaved": (CASES["mixtral"], _leave_halves),
    "two experts swapped": (CASES["mixtral"], _swap_experts),
    "two experts swapped with their rows of the router": (CASES["mixtral"], _swap_router_rows),
    "biases of other experts": (CASES["deepseek_v3"], _turn_biases),
    "qwen3_moe with norm_topk_prob: false": (Case("qwen3_moe", {"norm_topk_prob": False}), None),
    "gpt_oss with truncate: false": (
        Case("gpt_oss", {"rope_parameters": {**_YARN, "truncate": False}}),
        None,
    ),
    "deepseek_v2 with group_limited_greedy": (
        Case("deepseek_v2", {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1}),
        None,
    ),
}


def check(
    source: tuple[Any, Any], case: Case, *, spoil: Callable[[Any], None] | None = None
) -> Comparison:
    """Compare a case with the file that is converted from it.

    Args:
        source: The converter's packages.
        case: The model.
        spoil: Changes the model that is converted, in place.
    """
    overrides = WIDE | OWN.get(case.family, {}) | case.overrides
    model = build_family(case.family, **overrides)
    converted = model
    if spoil is not None:
        converted = build_family(case.family, **overrides)
        with torch.no_grad():
            spoil(converted)
    generator = torch.Generator().manual_seed(0)
    shape = (_NUM_PROMPTS, _PROMPT_TOKENS)
    prompts = torch.randint(_FIRST_TOKEN, _VOCAB_SIZE, shape, generator=generator).tolist()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "model.gguf")
        converted.save_pretrained(path.with_name("model"))
        convert(*source, path.with_name("model"), path, "f32")
        return compare_file(path, model, prompts, num_new_tokens=_NUM_NEW_TOKENS, ubatch=_UBATCH)


def main() -> None:
    """Print a line for each case and each fault; exit with 1 if one is not as it has to be."""
    source = import_converter(Path(sys.argv[1]))
    wanted = sys.argv[2:] or [*CASES, *FAULTS]
    is_wrong = False
    for name in wanted:
        case, spoil = FAULTS[name] if name in FAULTS else (CASES[name], None)
        found = check(source, case, spoil=spoil)
        is_right = found.are_same != (name in FAULTS)
        is_wrong = is_wrong or not is_right
        verdict = "" if is_right else "WRONG: "
        sys.stdout.write(f"{verdict}{name}: {found.describe()}\n")
        sys.stdout.flush()
    sys.exit(is_wrong)


if __name__ == "__main__":
    main()
