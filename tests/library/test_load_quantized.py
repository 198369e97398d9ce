"""A quantized model is traced with the same decisions by command and from memory."""

from __future__ import annotations

import pandas as pd
import pytest
from transformers import AutoTokenizer

from moetool import Trace, load_quantized, trace_model
from moetool.catalogue.names import demo_folder
from moetool.report.trace_summary import render_trace_summary

PROMPTS = ["The dog ran through the woods", "Der Hund lief durch den Wald"]


@pytest.fixture(scope="module")
def trace() -> Trace:
    return trace_model("demo", PROMPTS, quantization="nf4", double_quant=True, device="cpu")


def test_metadata_and_summary_state_the_bytes_of_each_part(trace: Trace) -> None:
    facts = trace.metadata
    assert facts.quantization == "nf4, double quantization"
    assert facts.experts_implementation == "packed"
    # 6 layers of 8 experts with 3 x 128 x 128 weights: half a byte each, and scales.
    weights, blocks = 6 * 8 * 3 * 128 * 128, 6 * 8 * 3 * 128 * 128 // 64
    nested = 6 * 8 * 4 * (2 + 1 + 1 + 1)
    assert facts.quantized_expert_bytes == weights // 2 + blocks + nested
    summary = render_trace_summary(facts, trace.summary, num_rows=trace.num_rows, elapsed_s=1.0)
    assert "quantized while loading (nf4, double quantization): experts 1.2 MiB" in summary


def test_a_model_in_memory_gives_the_same_rows(trace: Trace) -> None:
    model = load_quantized("demo", double_quant=True, device="cpu")
    again = trace_model((model, AutoTokenizer.from_pretrained(demo_folder())), PROMPTS)
    pd.testing.assert_frame_equal(again.to_frame(), trace.to_frame())
    assert again.metadata.quantized_linear_bytes == trace.metadata.quantized_linear_bytes
    assert again.metadata.quantized_linear_bytes


def test_experts_can_be_left_plain() -> None:
    model = load_quantized("demo", "int8", quantize_experts=False, device="cpu")
    found = trace_model((model, AutoTokenizer.from_pretrained(demo_folder())), PROMPTS)
    assert found.metadata.quantization == "int8, without experts"
    assert found.metadata.experts_implementation != "packed"
    assert found.metadata.quantized_expert_bytes == 0
    assert found.metadata.unquantized_bytes is not None
    assert found.metadata.unquantized_bytes > 6 * 8 * 3 * 128 * 128 * 4
