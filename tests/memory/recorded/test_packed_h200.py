"""Models with packed experts on an H200 against today's simulations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quantized.memory import AS_CHOSEN, IN_TURNS, simulate_line

MEASURED = Path(__file__).parents[3] / "benchmarks/memory/measured/packed_h200.jsonl"
MIB = 2**20
# Where the loader leaves holes, torch's allocator doesn't split off the last MiB of a block.
WEIGHTS_TOLERANCE, ABOVE_TOLERANCE_BYTES = 0.0021, 2 * MIB
CASES = (
    ("olmoe-1b-7b", "nf4", 1),
    ("mixtral-8x7b", "nf4", 16),
    ("qwen3-30b-a3b", "nf4", 16),
    ("deepseek-v2-lite", "nf4", 1),
    ("gpt-oss-20b", "nf4", 16),
)


def find_lines(model: str, quantization: str, batch_size: int) -> dict[str, dict[str, Any]]:
    """Return the lines of a case without double quantization, by routing."""
    return {
        line["routing"]: line
        for line in map(json.loads, MEASURED.read_text(encoding="utf-8").splitlines())
        if line["model"] == model
        and line["options"]["batch_size"] == batch_size
        and line["options"]["quantization"] == quantization
        and "is_double_quantized" not in line["options"]
    }


@pytest.mark.parametrize(("model", "quantization", "batch_size"), CASES)
def test_packed_experts_take_what_they_took(model: str, quantization: str, batch_size: int) -> None:
    line = find_lines(model, quantization, batch_size)[IN_TURNS]

    found = simulate_line(line)

    assert found["cache_bytes"] == line["cache_bytes"]
    assert found["weights_bytes"] == pytest.approx(line["weights_bytes"], rel=WEIGHTS_TOLERANCE)
    for name in ("prefill_peak_bytes", "decode_peak_bytes"):
        above, measured = (each[name] - each["weights_bytes"] for each in (found, line))
        assert abs(above - measured) <= ABOVE_TOLERANCE_BYTES


def test_prompts_of_random_routers_took_a_little_more_or_less_and_steps_the_same() -> None:
    lines = [json.loads(line) for line in MEASURED.read_text(encoding="utf-8").splitlines()]
    cases: dict[str, dict[str, Any]] = {}
    for line in lines:
        key = json.dumps([line["model"], line["options"]])
        cases.setdefault(key, {})[line["routing"]] = line
    both = [case for case in cases.values() if AS_CHOSEN in case]

    assert len(both) >= 10
    for case in both:
        in_turns, chosen = case[IN_TURNS], case[AS_CHOSEN]
        assert chosen["decode_peak_bytes"] == in_turns["decode_peak_bytes"]
        assert 0.994 < chosen["prefill_peak_bytes"] / in_turns["prefill_peak_bytes"] < 1.019
