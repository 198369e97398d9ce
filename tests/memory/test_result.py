"""Values that follow from known figures, and gaps where figures are unknown."""

from __future__ import annotations

from dataclasses import replace

from moetool.memory.answers.figures import Basis, MemoryFigures, Method, Peak, Phase, StoredWeights
from moetool.memory.answers.on_gpus import Fit
from moetool.memory.measured.measurement import Measurement
from moetool.memory.result import Estimate
from moetool.memory.scenario import Scenario
from moetool.quantized.kinds import Quantization
from moetool.simulation.memory.timeline import AllocatedParts

FIGURES = MemoryFigures(
    weights_bytes=100,
    cache_bytes=20,
    peak_allocated_bytes=150,
    peak_reserved_bytes=180,
    total_device_bytes=230,
)
ESTIMATE = Estimate(
    model="any",
    scenario=Scenario(),
    method=Method.SIMULATED,
    gpu="b",
    figures=FIGURES,
    context_bytes=50,
)


def make_fit(
    gpu: str,
    memory_bytes: int,
    *,
    fits: bool | None,
    quantization: Quantization = Quantization.NONE,
) -> Fit:
    return Fit(
        gpu=gpu,
        memory_bytes=memory_bytes,
        quantization=quantization,
        num_gpus=None,
        fits=fits,
        headroom_bytes=None,
    )


def test_slack_is_what_is_reserved_beyond_what_is_allocated() -> None:
    assert FIGURES.slack_bytes == 30
    assert replace(FIGURES, peak_reserved_bytes=None).slack_bytes is None
    assert replace(FIGURES, peak_allocated_bytes=None).slack_bytes is None


def test_the_peak_of_all_is_the_phase_with_most_allocated() -> None:
    prefill = Peak(
        phase=Phase.PREFILL,
        layer=None,
        operation="any",
        parts=AllocatedParts(
            weights_bytes=100,
            cache_bytes=5,
            activation_bytes=40,
            workspace_bytes=2,
        ),
    )
    parts = replace(prefill.parts, cache_bytes=20, activation_bytes=24)
    decode = replace(prefill, phase=Phase.DECODE, parts=parts)
    assert (prefill.allocated_bytes, decode.allocated_bytes) == (147, 146)
    assert replace(ESTIMATE, peaks=(prefill, decode)).at_peak == prefill
    assert ESTIMATE.at_peak is None


def test_the_fit_is_that_of_the_named_gpu_and_of_the_quantization_that_is_run() -> None:
    unquantized = make_fit("b", 200, fits=False)
    in_nf4 = make_fit("b", 200, fits=True, quantization=Quantization.NF4)
    fits = (make_fit("a", 300, fits=True), in_nf4, unquantized)
    estimate = replace(ESTIMATE, fits=fits)
    assert estimate.fit == unquantized
    scenario = Scenario(quantization=Quantization.NF4)
    assert replace(estimate, scenario=scenario).fit == in_nf4
    assert replace(estimate, gpu="c").fit is None


def test_the_smallest_fit_has_the_least_memory_of_those_that_fit_as_run() -> None:
    smallest = make_fit("d", 250, fits=True)
    fits = (
        make_fit("a", 300, fits=True),
        make_fit("b", 200, fits=False),
        make_fit("c", 210, fits=None),
        smallest,
        make_fit("e", 100, fits=True, quantization=Quantization.INT8),
    )
    assert replace(ESTIMATE, fits=fits).smallest_fit == smallest
    assert replace(ESTIMATE, fits=fits[1:3]).smallest_fit is None


def test_the_excess_over_what_was_measured_is_of_figures_that_both_know() -> None:
    measured = Measurement(
        gpu="any",
        figures=replace(
            FIGURES, weights_bytes=99, peak_allocated_bytes=160, peak_reserved_bytes=None
        ),
        context_bytes=48,
        seconds=1.0,
    )
    estimate = replace(
        ESTIMATE, measured=measured, figures=replace(FIGURES, total_device_bytes=None)
    )
    assert estimate.excess_over_measured_bytes == {
        "weights_bytes": 1,
        "cache_bytes": 0,
        "peak_allocated_bytes": -10,
        "context_bytes": 2,
    }
    unknown = replace(estimate, context_bytes=None)
    assert "context_bytes" not in unknown.excess_over_measured_bytes
    assert ESTIMATE.excess_over_measured_bytes == {}


def test_an_estimate_for_all_gpus_is_that_even_if_no_fit_is_known() -> None:
    fits = (make_fit("a", 300, fits=True), make_fit("b", 200, fits=False))
    estimate = replace(ESTIMATE, fits=fits)
    assert (estimate.is_gpu_named, estimate.smallest_gpu) == (False, "a")
    assert not replace(ESTIMATE, fits=()).is_gpu_named
    named = replace(ESTIMATE, fits=fits[1:], is_gpu_named=True)
    assert (named.is_gpu_named, named.smallest_gpu) == (True, None)


def test_a_run_fits_alone_on_the_named_gpu_or_on_any() -> None:
    fits = (make_fit("a", 300, fits=True), make_fit("b", 200, fits=False))
    assert replace(ESTIMATE, fits=fits).fits_alone is True
    assert replace(ESTIMATE, fits=fits[1:]).fits_alone is False
    assert replace(ESTIMATE, fits=fits, is_gpu_named=True).fits_alone is False
    assert replace(ESTIMATE, gpu="a", fits=fits, is_gpu_named=True).fits_alone is True
    assert replace(ESTIMATE, fits=()).fits_alone is None
    assert replace(ESTIMATE, fits=(make_fit("b", 200, fits=None),)).fits_alone is None


def test_dequantized_weights_have_a_fit_and_a_smallest_gpu() -> None:
    stored = StoredWeights(
        method="mxfp4",
        stored_bytes=None,
        loaded_bytes=None,
        is_dequantized=None,
        basis=Basis.PUBLISHED,
    )
    fits = tuple(
        make_fit(gpu, size, fits=None) for gpu, size in (("a", 300), ("b", 200), ("c", 240))
    )
    estimate = replace(ESTIMATE, fits=fits, stored=stored, variants={"dequantized": FIGURES})
    smallest, own = estimate.smallest_fit_dequantized, estimate.fit_dequantized
    assert smallest is not None
    assert (smallest.gpu, smallest.headroom_bytes) == ("c", 10)
    assert own is not None
    assert (own.gpu, own.fits, own.headroom_bytes) == ("b", False, -30)
    assert ESTIMATE.smallest_fit_dequantized is ESTIMATE.fit_dequantized is None
