"""One estimate for a terminal: the verdict first, eighty columns, sums that are checked."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from moetool.memory.answers.figures import MemoryFigures, Method, Phase, StoredWeights
from moetool.memory.scenario import CacheKind, Scenario, Task
from moetool.quantized.kinds import Quantization, QuantizedExperts
from moetool.report.memory.data import render_table_text
from moetool.report.renderer import View
from tests.report.memory.estimates import (
    FIGURES,
    FITS,
    GIB,
    MIB,
    PREFILL,
    make_estimate,
    make_full_estimate,
)

TERMINAL = View(width=80)


def render(**changes: Any) -> str:
    return render_table_text([make_estimate(**changes)], TERMINAL)


def test_a_run_that_fits_is_shown_like_this() -> None:
    assert render(notes=("A note that is long enough to be cut: " + "so " * 14, "Another.")) == (
        """\
small-4x needs 21.5 GiB and fits on 1 × big (80.0 GiB): 58.5 GiB to spare.

A note that is long enough to be cut: so so so so so so so so so so so so so
  so
Another.

run         generate: 1 sequence of 2,048 prompt tokens and 256 new ones
weights     in the configuration's dtype
method      simulated: runs the model's own code without data, following every
            allocation
confirmed   on no GPU yet

peak of decode         bytes    share   of the device total
───────────────────────────────────────────────────────────────────────
weights             16.0 GiB    74.4%   ██████████████▉
cache                2.0 GiB     9.3%   █▉
activations          1.8 GiB     8.1%   █▋
workspace          256.0 MiB     1.2%   ▎
= peak allocated    20.0 GiB    93.0%   torch.cuda.max_memory_allocated
allocator slack      1.0 GiB     4.7%   ▉
= peak reserved     21.0 GiB    97.7%   torch.cuda.max_memory_reserved
CUDA context       512.0 MiB     2.3%   ▌
= device total      21.5 GiB   100.0%   nvidia-smi

decode      peaks at 20.0 GiB: index in mlp.experts of model.layers.3
prefill     peaks at 18.2 GiB: mm in lm_head, outside layers

  memory   unquantized   nf4         GPU
────────────────────────────────────────
80.0 GiB   yes +58.5     yes +70.5   big
yes/no: GiB to spare, or missing, on one GPU.

small-4x needs 21.5 GiB and fits on 1 × big (80.0 GiB): 58.5 GiB to spare.
"""
    )


def test_without_a_gpu_the_page_ends_with_the_verdict_that_it_begins_with() -> None:
    in_short = """\
small-4x needs 21.5 GiB and fits on one big (80.0 GiB), the smallest known GPU
that can hold it.
The smallest is the small (16.0 GiB) in nf4.
"""
    text = render(fits=FITS, notes=("A note.",))
    assert text.startswith(f"{in_short}\nA note.\n\nrun  ")
    assert text.endswith(
        f"""
  memory   unquantized   nf4         GPUs
──────────────────────────────────────────
16.0 GiB   no -5.5 ×3    yes +6.5    small
80.0 GiB   yes +58.5     yes +70.5   big
yes/no: GiB to spare, or missing, on one GPU. ×N: fits on N GPUs with
device_map="auto". `moetool gpus` lists the GPUs.

{in_short}"""
    )


def test_a_cache_that_grows_after_the_peak_is_shown_next_to_the_one_at_the_peak() -> None:
    higher = replace(PREFILL, parts=replace(PREFILL.parts, activation_bytes=9 * GIB))
    words = "\ncache       2.0 GiB after the last token that runs; 1.0 GiB at the peak above\n"
    assert words in render(peaks=(higher,))
    assert "\ncache  " not in render().partition("peaks at")[2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "in the configuration's dtype"),
        ({"loaded_dtype": "bfloat16"}, "in bfloat16, the configuration's dtype"),
        ({"loaded_dtype": "float16", "scenario": Scenario(dtype="float16")}, "in float16"),
        (
            {
                "loaded_dtype": "bfloat16",
                "stored": StoredWeights(
                    method="fp8, blocks", stored_bytes=1, loaded_bytes=1, is_dequantized=False
                ),
            },
            "in fp8, the rest in bfloat16",
        ),
    ],
)
def test_the_dtype_is_named(changes: dict[str, Any], words: str) -> None:
    assert f"\nweights     {words}\n" in render(**changes)


def test_a_run_that_does_not_fit_begins_with_what_can_be_done() -> None:
    assert render_table_text([make_full_estimate()], TERMINAL).startswith(
        """\
small-4x needs 21.5 GiB and doesn't fit on 1 × small (16.0 GiB): short by 5.5
GiB.
It fits on 3 × small with device_map="auto".
On 1 × small it fits in nf4.
With the routed experts of 7 of 18 layers in host memory, 1 × small is enough.

A note that is long enough to be cut: so so so so so so so so so so so so so
  so
Another.

run         """
    )


def test_quantization_is_shown_both_ways_side_by_side() -> None:
    scenario = Scenario(
        quantization=Quantization.NF4, is_double_quantized=True, dtype="bfloat16", batch_size=8
    )
    variants = {
        "transformers": FIGURES,
        "experts_quantized": replace(FIGURES, weights_bytes=4 * GIB, peak_allocated_bytes=None),
    }
    text = render(scenario=scenario, variants=variants)
    assert (
        """
run         generate: 8 sequences of 2,048 prompt tokens and 256 new ones
weights     in nf4, double-quantized, the rest in bfloat16; experts as
            transformers loads them
"""
        in text
    )
    assert (
        """
nf4                          weights   peak allocated   device total
────────────────────────────────────────────────────────────────────
as transformers loads it    16.0 GiB         20.0 GiB       21.5 GiB
experts quantized as well    4.0 GiB          unknown       21.5 GiB
"""
        in text
    )
    quantized = replace(scenario, experts=QuantizedExperts.QUANTIZED)
    words = " in bfloat16; experts quantized as well method "
    assert words in " ".join(render(scenario=quantized).split())
    assert words not in " ".join(render(scenario=scenario).split())


def read_column(text: str) -> dict[str, float]:
    """Return the printed shares of the device's total, by row."""
    return {
        label.strip(): float(share)
        for label, share in re.findall(
            r"^([=A-Za-z][^\d\n]+?) +[\d.]+ \w+ +(\d+\.\d)%", text, re.MULTILINE
        )
    }


def test_printed_parts_add_up_to_the_subtotals_and_those_to_the_total() -> None:
    shares = read_column(render())
    assert len(shares) == 9
    parts = [shares[name] for name in ("weights", "cache", "activations", "workspace")]
    allocated = shares["= peak allocated"]
    assert sum(parts) == pytest.approx(allocated, abs=0.2)
    reserved = shares["= peak reserved"]
    assert allocated + shares["allocator slack"] == pytest.approx(reserved, abs=0.15)
    assert reserved + shares["CUDA context"] == pytest.approx(100, abs=0.15)


def test_options_are_shown_only_if_they_were_chosen() -> None:
    scenario = Scenario(
        attention="eager",
        experts_implementation="batched_mm",
        cache=CacheKind.STATIC,
        has_padding=True,
    )
    words = "\noptions     eager attention, batched_mm experts, static cache, padded prompts\n"
    assert words in render(scenario=scenario)
    assert "options" not in render()


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        (
            Scenario(num_prompt_tokens=1, num_new_tokens=1),
            "generate: 1 sequence of 1 prompt token and 1 new one",
        ),
        (
            Scenario(task=Task.FORWARD, batch_size=2, num_new_tokens=0),
            "forward: 2 sequences of 2,048 prompt tokens",
        ),
    ],
)
def test_what_is_run_is_said(scenario: Scenario, words: str) -> None:
    assert f"\nrun         {words}\n" in render(scenario=scenario)


@pytest.mark.parametrize("method", Method)
def test_how_figures_came_about_is_said(method: Method) -> None:
    assert f"\nmethod      {method.value}" in render(method=method)


def test_the_higher_peak_comes_first_and_gives_the_breakdown() -> None:
    higher = replace(PREFILL, parts=replace(PREFILL.parts, activation_bytes=9 * GIB))
    text = render(peaks=(higher, replace(PREFILL, phase=Phase.DECODE)))
    assert text.index("peak of prefill ") < text.index("\nprefill  ") < text.index("\ndecode  ")


def test_unknown_figures_are_said_to_be() -> None:
    unknown = MemoryFigures(
        weights_bytes=GIB,
        cache_bytes=None,
        peak_allocated_bytes=None,
        peak_reserved_bytes=None,
        total_device_bytes=None,
    )
    text = render(figures=unknown, peaks=(), fits=(), context_bytes=None)
    for label in ("cache", "activations", "allocator slack", "CUDA context", "= device total"):
        assert re.search(rf"^{label} +unknown", text, re.MULTILINE)
    assert "at the peak" in text
    assert "None" not in text
    assert "%" not in text


@pytest.mark.parametrize(
    ("is_dequantized", "ending"),
    [(True, ", dequantized"), (False, ", still quantized"), (None, "")],
)
def test_a_quantized_checkpoint_is_shown_as_stored_and_as_loaded(
    is_dequantized: bool | None, ending: str
) -> None:
    stored = StoredWeights(
        method="fp8", stored_bytes=None, loaded_bytes=MIB, is_dequantized=is_dequantized
    )
    words = f"fp8: unknown in its files, 1.0 MiB as loaded{ending}"
    assert f"\ncheckpoint  {words}\n" in render(stored=stored)
