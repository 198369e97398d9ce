"""Render estimates as a page or a table, as JSON, or as CSV with one row each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from moetool.report import envelope
from moetool.report.memory import comparison, page
from moetool.report.renderer import DEFAULT_VIEW, Renderers, ReportFormat, View
from moetool.report.text.page import render_page

if TYPE_CHECKING:
    from moetool.memory.figures import MemoryFigures, Peak
    from moetool.memory.on_gpus import Limits, Offload, SpeedBound
    from moetool.memory.result import Estimate, Measurement

_SCENARIO = (
    "batch_size",
    "num_prompt_tokens",
    "num_new_tokens",
    "task",
    "dtype",
    "attention",
    "experts_implementation",
    "cache",
    "has_padding",
    "quantization",
    "is_double_quantized",
    "experts",
)
_FIGURES = (
    "weights_bytes",
    "cache_bytes",
    "peak_allocated_bytes",
    "peak_reserved_bytes",
    "context_bytes",
    "total_device_bytes",
)
_PEAK = (
    "phase",
    "layer",
    "operation",
    "weights_bytes",
    "cache_bytes",
    "activation_bytes",
    "workspace_bytes",
)
_PHASES = ("prefill", "decode")
_COLUMNS = (
    "model",
    *_SCENARIO,
    "method",
    "gpu",
    *_FIGURES,
    *(f"at_peak_{name}" for name in _PEAK),
    *(f"{phase}_peak_allocated_bytes" for phase in _PHASES),
    *(f"measured_{name}" for name in _FIGURES),
    "stored_as",
    "weights_basis",
)


def render_table_text(estimates: Sequence[Estimate], view: View = DEFAULT_VIEW) -> str:
    """Return one estimate in full, or a row for each of several."""
    if len(estimates) == 1:
        return render_page(page.list_blocks(estimates[0]), view)
    return render_page(comparison.list_blocks(estimates), view)


def render_json(estimates: Sequence[Estimate], view: View = DEFAULT_VIEW) -> str:
    """Return everything as one JSON object, sizes in bytes and unknown values as null."""
    objects = [_as_object(estimate) for estimate in estimates]
    return envelope.render_json(
        "moetool.memory-estimate/1",
        {"estimates": objects, **view.list_failures()},
        libraries=envelope.MODEL_LIBRARIES,
    )


def render_csv(estimates: Sequence[Estimate], _: View = DEFAULT_VIEW) -> str:
    """Return one row for every estimate, without its lists: fits, ranks and notes."""
    return envelope.render_csv(map(_as_row, estimates), _COLUMNS)


RENDERERS: Renderers[Sequence[Estimate]] = {
    ReportFormat.TABLE: render_table_text,
    ReportFormat.JSON: render_json,
    ReportFormat.CSV: render_csv,
}


def _as_object(estimate: Estimate) -> dict[str, Any]:
    return {
        "model": estimate.model,
        "scenario": estimate.scenario,
        "method": estimate.method,
        **_name_figures(estimate.figures, context_bytes=estimate.context_bytes),
        "at_peak": _as_peak(estimate.at_peak) if estimate.at_peak else None,
        "peaks": [_as_peak(peak) for peak in estimate.peaks],
        "variants": estimate.variants,
        "fits": estimate.fits,
        "notes": estimate.notes,
        "gpu": estimate.gpu,
        "stored": estimate.stored,
        "limits": _on_gpu(estimate.limits, estimate.gpu),
        "ranks": estimate.ranks,
        "offload": _on_gpu(estimate.offload, estimate.gpu),
        "speed": _on_gpu(estimate.speed, estimate.gpu),
        "measured": _as_measured(estimate.measured) if estimate.measured else None,
        "fits_dequantized": estimate.fits_dequantized,
        "confirmed_on": estimate.confirmed_on,
    }


def _as_peak(peak: Peak) -> dict[str, Any]:
    values = {**vars(peak), **vars(peak.parts)}
    return {name: values[name] for name in _PEAK}


def _on_gpu(answer: Limits | Offload | SpeedBound | None, gpu: str) -> dict[str, Any] | None:
    return None if answer is None else {"gpu": gpu, **vars(answer)}


def _as_measured(measured: Measurement) -> dict[str, Any]:
    return {
        "gpu": measured.gpu,
        **_name_figures(measured.figures, context_bytes=measured.context_bytes),
        "seconds": measured.seconds,
    }


def _name_figures(figures: MemoryFigures, *, context_bytes: int | None) -> dict[str, int | None]:
    named = {**asdict(figures), "context_bytes": context_bytes}
    return {name: named[name] for name in _FIGURES}


def _as_row(estimate: Estimate) -> dict[str, Any]:
    peak, measured, stored = estimate.at_peak, estimate.measured, estimate.stored
    return {
        "model": estimate.model,
        **asdict(estimate.scenario),
        "method": estimate.method,
        **({"stored_as": stored.method, "weights_basis": stored.basis} if stored else {}),
        "gpu": estimate.gpu,
        **_name_figures(estimate.figures, context_bytes=estimate.context_bytes),
        **({f"at_peak_{name}": value for name, value in _as_peak(peak).items()} if peak else {}),
        **{f"{each.phase}_peak_allocated_bytes": each.allocated_bytes for each in estimate.peaks},
        **(
            {
                f"measured_{name}": number
                for name, number in _name_figures(
                    measured.figures, context_bytes=measured.context_bytes
                ).items()
            }
            if measured
            else {}
        ),
    }
