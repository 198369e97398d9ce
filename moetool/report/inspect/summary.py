"""Sum up each inspected model in one row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moetool.report import envelope
from moetool.report.inspect import comparison
from moetool.report.renderer import DEFAULT_VIEW, Renderers, ReportFormat, View
from moetool.report.text.page import render_page

if TYPE_CHECKING:
    from moetool.anatomy.parameters import ActiveRange
    from moetool.inspection.result import Inspection, Parameters

# The names of `Component`, which reports don't import.
COMPONENTS = (
    "embedding",
    "lm_head",
    "mixer",
    "router",
    "routed_experts",
    "shared_experts",
    "dense_mlp",
    "norm",
    "vision",
    "audio",
    "other",
)
_ACTIVE = ("without_input_embedding", "without_embedding_and_head")
COLUMNS = (
    "model",
    "source",
    "model_type",
    "params",
    "active_params",
    "active_params_min",
    "active_params_max",
    *(f"active_params_{definition}" for definition in _ACTIVE),
    *(f"{component}_params" for component in COMPONENTS),
    "num_layers",
    "num_moe_layers",
    "num_experts",
    "num_experts_min",
    "num_experts_max",
    "top_k",
    "top_k_min",
    "top_k_max",
    "num_shared_experts",
    "context_length",
    "vocab_size",
    "dtype",
    "bytes",
    "quantization",
    "prefill_flops_per_token",
    "decode_flops_per_token",
    "published_total_b",
    "published_active_b",
    "reported_total",
    "reported_active",
)


def render_table_text(models: Sequence[Inspection], view: View = DEFAULT_VIEW) -> str:
    """Return models side by side, even if there is only one."""
    return render_page(comparison.list_blocks(models, view), view)


def render_json(models: Sequence[Inspection], _: View = DEFAULT_VIEW) -> str:
    """Return the rows as one JSON object, with the notes on each model."""
    rows = [{**sum_up(model), "notes": model.notes} for model in models]
    return envelope.render_json(
        "moetool.inspect-summary/1", {"models": rows}, libraries=envelope.MODEL_LIBRARIES
    )


def render_csv(models: Sequence[Inspection], _: View = DEFAULT_VIEW) -> str:
    """Return one row for each model."""
    return envelope.render_csv(map(sum_up, models), COLUMNS)


RENDERERS: Renderers[Sequence[Inspection]] = {
    ReportFormat.TABLE: render_table_text,
    ReportFormat.JSON: render_json,
    ReportFormat.CSV: render_csv,
}


def sum_up(model: Inspection) -> dict[str, Any]:
    """Return one model as a row. Figures of layers that differ have only their range."""
    anatomy, flops = model.anatomy, model.flops
    published, reported = model.published, model.reported
    row = {
        "model": model.model,
        "source": model.source.value,
        "model_type": model.model_type,
        **_sum_up_parameters(model.parameters),
        "num_layers": model.num_layers,
        "num_moe_layers": model.num_moe_layers,
        **dict(_span("num_experts", model.num_experts)),
        **dict(_span("top_k", model.top_k)),
        "num_shared_experts": model.num_shared_experts,
        "context_length": anatomy.context_length if anatomy else None,
        "vocab_size": anatomy.vocab_size if anatomy else None,
        "dtype": model.dtype,
        "bytes": model.parameters.num_bytes if model.parameters else None,
        "quantization": model.quantization,
        "prefill_flops_per_token": flops.prefill if flops else None,
        "decode_flops_per_token": flops.decode if flops else None,
        "published_total_b": published.total_b if published else None,
        "published_active_b": published.active_b if published else None,
        "reported_total": reported.total if reported else None,
        "reported_active": reported.active if reported else None,
    }
    return {name: row.get(name) for name in COLUMNS}


def _sum_up_parameters(parameters: Parameters | None) -> dict[str, int | None]:
    if parameters is None:
        return {}
    active: Mapping[str, ActiveRange | None] = {
        definition.value: number for definition, number in parameters.active.items()
    }
    run = active["all"]
    return {
        "params": parameters.total,
        "active_params": run.exact if run else None,
        "active_params_min": run.fewest if run else None,
        "active_params_max": run.most if run else None,
        **{
            f"active_params_{definition}": number.exact
            for definition in _ACTIVE
            if (number := active[definition]) is not None
        },
        **{f"{name}_params": number for name, number in parameters.components.items()},
    }


def _span(
    name: str, numbers: int | Sequence[int | None] | None
) -> Iterator[tuple[str, int | None]]:
    """Yield a figure of all layers, and the range that it spans; None if any is unknown."""
    several = [numbers] if isinstance(numbers, int) else list(numbers or [])
    known = [number for number in several if number is not None]
    if not known or len(known) < len(several):
        return
    least, most = min(known), max(known)
    yield name, least if least == most else None
    yield f"{name}_min", least
    yield f"{name}_max", most
