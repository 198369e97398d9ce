"""Render inspections as tables, as JSON, or as CSV with a row per layer and component."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Any

from moetool.report import envelope
from moetool.report.inspect import comparison, page
from moetool.report.renderer import DEFAULT_VIEW, Renderers, ReportFormat, View
from moetool.report.text.page import render_page

if TYPE_CHECKING:
    from moetool.anatomy.parameters import ActiveRange
    from moetool.inspection.result import Inspection

_COLUMNS = (
    "stack",
    "layer",
    "component",
    "params",
    "active_params",
    "active_params_min",
    "active_params_max",
    "dtype",
    "bytes",
    "file_params",
    "file_dtype",
    "file_bytes",
)


def render_table_text(models: Sequence[Inspection], view: View = DEFAULT_VIEW) -> str:
    """Return one model in full, or several side by side."""
    if len(models) == 1 or view.per_layer:
        blocks = chain.from_iterable(page.list_blocks(model, view) for model in models)
        return render_page(blocks, view)
    return render_page(comparison.list_blocks(models, view), view)


def render_json(models: Sequence[Inspection], view: View = DEFAULT_VIEW) -> str:
    """Return everything as one JSON object, numbers unrounded; rows only in a view per layer."""
    objects = [_as_object(model, per_layer=view.per_layer) for model in models]
    return envelope.render_json(
        "moetool.inspect/1",
        {"models": objects, **view.list_failures()},
        libraries=envelope.MODEL_LIBRARIES,
    )


def render_csv(models: Sequence[Inspection], _: View = DEFAULT_VIEW) -> str:
    """Return one row per layer and component of each model."""
    rows = ({"model": model.model, **asdict(row)} for model in models for row in model.rows)
    return envelope.render_csv(rows, ("model", *_COLUMNS))


RENDERERS: Renderers[Sequence[Inspection]] = {
    ReportFormat.TABLE: render_table_text,
    ReportFormat.JSON: render_json,
    ReportFormat.CSV: render_csv,
}


def _as_object(model: Inspection, *, per_layer: bool) -> dict[str, Any]:
    anatomy = model.anatomy
    value: dict[str, Any] = {
        "model": model.model,
        "model_type": model.model_type,
        "source": model.source.value,
        "num_layers": model.num_layers,
        "num_moe_layers": model.num_moe_layers,
        "num_experts": model.num_experts,
        "top_k": model.top_k,
        "num_shared_experts": model.num_shared_experts,
        "parameters": _describe_parameters(model),
        "notes": list(model.notes),
        "model_class": anatomy.model_class if anatomy else None,
        "revision": model.revision,
        "routed_layers": [asdict(layer) for layer in anatomy.routed_layers] if anatomy else None,
        "dense_layers": dict(anatomy.dense_layers) if anatomy else None,
        "mixers": [asdict(mixer) for mixer in anatomy.mixers] if anatomy else None,
        "context_length": anatomy.context_length if anatomy else None,
        "vocab_size": anatomy.vocab_size if anatomy else None,
        "quantization": model.quantization,
        "dtype": model.dtype,
        "flops_per_token": asdict(model.flops) if model.flops else None,
        "files": asdict(model.files) if model.files else None,
        "published": asdict(model.published) if model.published else None,
        "reported": asdict(model.reported) if model.reported else None,
    }
    if per_layer:
        value["rows"] = [asdict(row) for row in model.rows]
    return value


def _describe_parameters(model: Inspection) -> dict[str, Any] | None:
    parameters = model.parameters
    if parameters is None:
        return None
    return {
        "total": parameters.total,
        "active": {name.value: _exact(number) for name, number in parameters.active.items()},
        "components": dict(parameters.components),
        "active_range": {
            name.value: asdict(number) if number else None
            for name, number in parameters.active.items()
        },
        "active_components": {
            name: _exact(number) for name, number in parameters.active_components.items()
        },
        "expert_share": parameters.expert_share,
        "sparsity": parameters.sparsity,
        "bytes": parameters.num_bytes,
        "is_tied": parameters.is_tied,
    }


def _exact(number: ActiveRange | None) -> int | None:
    return number.exact if number else None
