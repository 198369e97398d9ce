"""Trace one model in several formats, and compare its routing with that in float32.

    python -m benchmarks.quantized.routing [MODEL] [PROMPTS]

Every format gets the same tokens. A decision is one token in one layer. It changed if another set of
experts was chosen, and its first choice did if another expert has the largest weight: see
`moetool compare`.
"""

from __future__ import annotations

import argparse
from typing import Any

from moetool import Trace, compare_traces, trace_model
from moetool.analysis.comparison.result import Agreement, Comparison

FORMATS: dict[str, dict[str, Any]] = {
    "bfloat16": {},
    "int8": {"quantization": "int8"},
    "nf4": {"quantization": "nf4"},
    "nf4, double": {"quantization": "nf4", "double_quant": True},
    "nf4 without experts": {"quantization": "nf4", "quantize_experts": False},
    "fp4": {"quantization": "fp4"},
}


def main() -> None:
    """Print a table: a row for each layer, and a column for each format."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("prompts", nargs="?", default="sample_prompts")
    arguments = parser.parse_args()
    plain = trace_model(arguments.model, arguments.prompts, dtype="float32")
    found: dict[str, Comparison] = {}
    for name, options in FORMATS.items():
        trace: Trace = trace_model(arguments.model, arguments.prompts, dtype="bfloat16", **options)
        print(f"{name}: {describe_bytes(trace)}", flush=True)
        found[name] = compare_traces(trace, plain)
    show(found)


def describe_bytes(trace: Trace) -> str:
    """Return what a trace's metadata says about quantized weights."""
    facts = trace.metadata
    if facts.quantized_expert_bytes is None:
        return f"{facts.num_decisions:,} decisions, nothing quantized"
    return (
        f"{facts.num_decisions:,} decisions, experts {facts.quantized_expert_bytes:,} bytes, linear "
        f"layers {facts.quantized_linear_bytes:,}, everything else {facts.unquantized_bytes:,}"
    )


def show(found: dict[str, Comparison]) -> None:
    """Print the shares of changed decisions and, behind them, of changed first choices."""
    print(f"| layer | {' | '.join(found)} |")
    print("|---|" + "---:|" * len(found))
    for layers in zip(*(comparison.layers for comparison in found.values()), strict=True):
        print(f"| {layers[0].layer} | {' | '.join(map(describe, layers))} |")
    overall = [describe(comparison.overall) for comparison in found.values()]
    print(f"| all | {' | '.join(overall)} |", flush=True)


def describe(agreement: Agreement) -> str:
    """Return the two shares of an agreement."""
    changed, first = agreement.changed_decisions, agreement.first_choice_flips
    assert changed is not None
    assert first is not None
    return f"{changed:.2%}, {first:.2%}"


if __name__ == "__main__":
    main()
