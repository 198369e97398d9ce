"""Any estimate fits any terminal."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from moetool.memory.answers.figures import MemoryFigures, Method, Peak, Phase, StoredWeights
from moetool.memory.answers.on_gpus import Fit, Limits, Offload, RankBytes, SpeedBound
from moetool.memory.measured.measurement import Measurement
from moetool.memory.result import Estimate
from moetool.memory.scenario import Attention, Scenario
from moetool.quantized.kinds import Quantization
from moetool.report.memory.data import render_table_text
from moetool.report.renderer import View
from moetool.simulation.memory.timeline import AllocatedParts

WORDS = st.text(max_size=100)
SIZES = st.integers(0, 2**60)
CHANGES = st.integers(-(2**60), 2**60)
SECONDS = st.floats(0, 1e9)


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


FIGURES_OF_ANY_KIND = st.builds(
    MemoryFigures,
    weights_bytes=SIZES,
    cache_bytes=maybe(SIZES),
    peak_allocated_bytes=maybe(SIZES),
    peak_reserved_bytes=maybe(st.integers(2**60, 2**61)),
    total_device_bytes=maybe(st.integers(2**61, 2**62)),
)
ESTIMATES = st.builds(
    Estimate,
    model=WORDS,
    scenario=st.builds(
        Scenario,
        batch_size=st.integers(1, 2**20),
        num_prompt_tokens=st.integers(1, 2**27),
        num_new_tokens=st.integers(1, 2**27),
        attention=maybe(st.sampled_from(Attention)),
        quantization=st.sampled_from(Quantization),
    ),
    method=st.sampled_from(Method),
    gpu=st.just("a") | WORDS,
    figures=FIGURES_OF_ANY_KIND,
    context_bytes=maybe(SIZES),
    peaks=st.lists(
        st.builds(
            Peak,
            phase=st.sampled_from(Phase),
            layer=maybe(WORDS),
            operation=WORDS,
            parts=st.builds(
                AllocatedParts,
                weights_bytes=maybe(SIZES),
                cache_bytes=SIZES,
                activation_bytes=SIZES,
                workspace_bytes=SIZES,
            ),
        ),
        max_size=2,
    ).map(tuple),
    variants=st.dictionaries(WORDS, FIGURES_OF_ANY_KIND, max_size=2),
    fits=st.lists(
        st.builds(
            Fit,
            gpu=st.just("a") | WORDS,
            memory_bytes=SIZES,
            quantization=st.sampled_from(Quantization),
            num_gpus=maybe(st.integers(1, 10**6)),
            fits=maybe(st.booleans()),
            headroom_bytes=maybe(CHANGES),
        ),
        max_size=5,
    ).map(tuple),
    limits=maybe(st.builds(Limits, largest_prompt_tokens=SIZES, largest_batch_size=SIZES)),
    ranks=st.lists(
        st.builds(
            RankBytes,
            way=WORDS,
            num_gpus=SIZES,
            weights_bytes=st.lists(SIZES, max_size=3).map(tuple),
            num_layers=maybe(st.lists(SIZES, max_size=3).map(tuple)),
            replicated_bytes=maybe(SIZES),
            reason=maybe(WORDS),
        ),
        max_size=3,
    ).map(tuple),
    offload=maybe(
        st.builds(
            Offload,
            num_offloaded_layers=SIZES,
            num_moe_layers=SIZES,
            gpu_bytes=SIZES,
            host_bytes=SIZES,
            transfer_bytes_per_token=SIZES,
            computed_on_host_bytes_per_token=maybe(SIZES),
            num_host_computed_layers=SIZES,
            fits_computed_on_host=st.booleans(),
            # Flags may be of any length: these fit.
            flags=st.dictionaries(
                st.sampled_from(["engine", "transformers"]),
                st.text(st.characters(max_codepoint=127), max_size=50),
            ),
            fits=st.booleans(),
        )
    ),
    speed=maybe(
        st.builds(
            SpeedBound,
            prefill_s=maybe(SECONDS),
            decode_s_per_token=maybe(SECONDS),
            prefill_is_bound_by=maybe(st.sampled_from(["compute", "memory"])),
            decode_is_bound_by=maybe(st.sampled_from(["compute", "memory"])),
            prefill_weight_flops=maybe(SIZES),
            decode_weight_flops=maybe(SIZES),
            prefill_read_bytes=maybe(SIZES),
            decode_read_bytes=maybe(SIZES),
            experts_touched_per_layer=maybe(st.floats(0, 1e4)),
            routing=WORDS,
            notes=st.lists(WORDS, max_size=2).map(tuple),
        )
    ),
    stored=maybe(
        st.builds(
            StoredWeights,
            method=WORDS,
            stored_bytes=maybe(SIZES),
            loaded_bytes=maybe(SIZES),
            is_dequantized=maybe(st.booleans()),
        )
    ),
    measured=maybe(
        st.builds(
            Measurement,
            gpu=WORDS,
            figures=FIGURES_OF_ANY_KIND,
            context_bytes=SIZES,
            seconds=SECONDS,
        )
    ),
    notes=st.lists(WORDS, max_size=3).map(tuple),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(ESTIMATES, min_size=1, max_size=3), st.sampled_from((60, 80, 120, 200)))
def test_whatever_is_in_estimates_they_keep_to_the_terminals_width(
    estimates: list[Estimate], width: int
) -> None:
    text = render_table_text(estimates, View(width=width))
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
