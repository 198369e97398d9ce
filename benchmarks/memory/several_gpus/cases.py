"""Geometries whose memory on several GPUs is measured, and the ways in which GPUs share them."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import transformers

from benchmarks.memory.formats import cut_layers
from benchmarks.tracing import geometries
from benchmarks.tracing.geometries import GEOMETRIES
from moetool.catalogue.published import read_published_config
from moetool.memory.layouts.plan import share_sequences

# Sequences, prompt tokens, new tokens; no new tokens for one call with all logits.
SCENARIOS = ((4, 1024, 8), (2, 512, 0), (16, 128, 24))


class Case(NamedTuple):
    """A way of sharing a geometry between some of a machine's GPUs."""

    geometry: str
    way: str
    num_gpus: int

    def describe(self) -> str:
        """Return the case in words."""
        return f"{self.way} of {self.geometry} on {self.num_gpus} GPUs"


def _share(geometry: str, num_gpus: int, *ways: str) -> list[Case]:
    return [Case(geometry, way, num_gpus) for way in ways]


_ALL_WAYS = ("tensor", "expert", "device-map")
_PLANS = ("tensor", "expert")
# By the number of GPUs of a machine.
CASES: dict[int, list[Case]] = {
    2: [
        *_share("Qwen3-30B-A3B, 4 layers", 2, *_ALL_WAYS, "data"),
        *_share("DeepSeek-V2-Lite, 4 layers", 2, *_ALL_WAYS),
        *_share("Mixtral-8x7B, 2 layers", 2, *_PLANS),
        *_share("Mixtral-8x7B, 4 layers", 2, "device-map"),
    ],
    3: [
        # 512 columns of each expert, which torch can't multiply once they are cut into three.
        *_share("granite-3.0-1b-a400m, 4 layers", 3, "tensor"),
    ],
    4: [
        *_share("Qwen3-30B-A3B, 4 layers", 4, *_PLANS, "data"),
        # Layers that don't divide evenly.
        *_share("Qwen3-30B-A3B, 6 layers", 4, "device-map"),
        *_share("Qwen3-30B-A3B, 6 layers", 3, "device-map"),
        *_share("Mixtral-8x7B, 2 layers", 4, *_PLANS),
        # Refused: 32 heads and 8 experts.
        *_share("Mixtral-8x7B, 2 layers", 3, *_PLANS),
        *_share("granite-3.0-1b-a400m, 4 layers", 3, "tensor"),
        # One GPU gets nothing.
        *_share("Mixtral-8x7B, 4 layers", 4, "device-map"),
        *_share("DeepSeek-V2-Lite, 4 layers", 4, *_PLANS),
        *_share("DeepSeek-V2-Lite, 7 layers", 4, "device-map"),
        # The last of four GPUs has a row less of the embedding and of the head.
        *_share("Qwen3-30B-A3B, 4 layers, vocabulary of 32003", 4, *_PLANS),
        *_share("gpt-oss-20b, 2 layers", 4, *_PLANS),
        *_share("gpt-oss-20b, 6 layers", 4, "device-map"),
    ],
    # 88 columns of each expert are a multiple of 16 bytes, 44 aren't.
    16: _share("moonlight-16b-a3b, 3 layers", 16, *_PLANS),
    32: _share("moonlight-16b-a3b, 3 layers", 32, *_PLANS),
}
IN_FP8 = ("qwen3-30b-a3b-fp8", "deepseek-v3")
_NAME = re.compile(
    r"(?P<model>[^,]+), (?P<layers>\d+) layers(, vocabulary of (?P<vocabulary>\d+))?"
)


def list_cases(num_gpus: int, *, is_in_fp8: bool) -> list[Case]:
    """Return the cases of a machine with this number of GPUs."""
    if is_in_fp8:
        return [case for name in IN_FP8 for case in _share(name, num_gpus, *_ALL_WAYS)]
    return CASES[max(number for number in CASES if number <= num_gpus)]


def list_scenarios(case: Case) -> list[tuple[int, int, int]]:
    """Return the sequences, prompt tokens and new tokens of each run of a case.

    Each GPU of `data` gets a sequence, and in one run some get a sequence more than others.
    """
    if case.way != "data":
        return list(SCENARIOS)
    return [
        (batch_size if batch_size >= case.num_gpus else 3 * case.num_gpus // 2, prompt, new)
        for batch_size, prompt, new in SCENARIOS
    ]


def count_sequences(way: str, batch_size: int, *, num_gpus: int) -> list[int]:
    """Return the number of sequences that each GPU runs."""
    if way == "data":
        return share_sequences(batch_size, num_gpus=num_gpus)
    return [batch_size] * num_gpus


def make_config(name: str) -> Any:
    """Return the configuration of a geometry with fewer layers and tokens."""
    parts = _NAME.fullmatch(name)
    assert parts is not None, name
    num_layers = int(parts["layers"])
    changes = {
        "vocab_size": int(parts["vocabulary"] or 32000),
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
    }
    if parts["model"] in GEOMETRIES:
        return geometries.make_config(parts["model"], num_hidden_layers=num_layers, **changes)
    values: dict[str, Any] = {**read_published_config(parts["model"]), **changes}
    values.pop("quantization_config", None)
    make: Any = transformers.CONFIG_MAPPING[str(values.pop("model_type"))]
    return make(**cut_layers(values, num_layers))
