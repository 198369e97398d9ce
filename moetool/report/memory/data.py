"""What models need to run: as a page or a table for people, as JSON, or as rows in CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import moetool
from moetool.printable import escape_json
from moetool.report.memory.comparison import render_comparison
from moetool.report.memory.page import render_page

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


def render_table_text(estimates: Sequence[Estimate]) -> str:
    """Return one estimate in full, or a row for each of several."""
    return render_page(estimates[0]) if len(estimates) == 1 else render_comparison(estimates)


def render_json(estimates: Sequence[Estimate]) -> str:
    """Return everything as one JSON object, sizes in bytes and what is unknown as null."""
    value = {
        "schema": "moetool.memory-estimate/1",
        "moetool": moetool.__version__,
        "estimates": [_as_plain(_as_object(estimate)) for estimate in estimates],
    }
    return escape_json(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1)) + "\n"


def render_csv(estimates: Sequence[Estimate]) -> str:
    """Return one row for every estimate, without what is a list: fits, ranks and notes."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=_COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(map(_as_row, estimates))
    return _make_writable(text.getvalue())


RENDERERS: Mapping[str, Callable[[Sequence[Estimate]], str]] = {
    "table": render_table_text,
    "json": render_json,
    "csv": render_csv,
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


def _as_plain(value: Any) -> Any:
    """Return a value as JSON's own kinds; null for infinite numbers, for which it has no word."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: _as_plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {name: _as_plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_as_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _make_writable(text: str) -> str:
    """Return a text with `?` for the bytes of a path that are no UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")
