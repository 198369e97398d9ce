"""Hand-made inspections, without torch, for tests of reports."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moetool.anatomy.components import Component
from moetool.anatomy.parameters import ActiveRange, ParameterRow, ParameterTable
from moetool.catalogue.published import ReportedSystem
from moetool.inspection.figures import Difference, Files, Flops
from moetool.inspection.result import Inspection, Source
from moetool.inspection.rows import pair_row
from moetool.inspection.summary import summarize

BYTES_PER_PARAMETER = 2

# By component of a layer: parameters, and those of them that a token runs.
_DENSE_LAYER = {
    Component.MIXER: (40_000, 40_000),
    Component.DENSE_MLP: (60_000, 60_000),
    Component.NORM: (200, 200),
}
_ROUTED_LAYER = {
    Component.MIXER: (40_000, 40_000),
    Component.ROUTER: (800, 800),
    Component.ROUTED_EXPERTS: (1_600_000, 400_000),
    Component.NORM: (200, 200),
}
_FIRST = {Component.EMBEDDING: (100_000, 100_000)}
_LAST = {Component.NORM: (100, 100), Component.LM_HEAD: (100_000, 100_000)}

REPORTED = ReportedSystem(
    name="closed-1",
    title="Closed-1",
    maker="Maker",
    total="1.6–1.8T",
    active=None,
    experts="16, top-2",
    source="press reports of 2023",
    notes="Unconfirmed.",
)
FLOPS = Flops(
    num_prompt_tokens=2048,
    prefill=2_000_000.0,
    decode=2_500_000,
    dense_prefill=8_000_000.0,
    dense_decode=10_000_000,
    prefill_ratio=0.25,
    decode_ratio=0.25,
)
FILES = Files(
    num_files=1,
    num_tensors=40,
    num_bytes=10_500_000,
    dtype_bytes={"bfloat16": 10_400_000, "float32": 90_000},
    differences=(
        Difference(
            what="biases that select experts, which transformers keeps as buffers",
            num_tensors=3,
            file_params=24,
            params=0,
            file_bytes=96,
            example="model.layers.1.mlp.gate.e_score_correction_bias",
        ),
    ),
)


def make_table(*, num_layers: int = 4) -> ParameterTable:
    """Return the parameter table of a model whose first layer is dense and whose other layers route."""
    places = [
        (None, _FIRST),
        *((layer, _ROUTED_LAYER if layer else _DENSE_LAYER) for layer in range(num_layers)),
        (None, _LAST),
    ]
    return ParameterTable(
        rows=tuple(
            ParameterRow(
                stack="decoder",
                layer=layer,
                component=component,
                num_params=num_params,
                active=ActiveRange(active, active),
                dtype="bfloat16",
                num_bytes=BYTES_PER_PARAMETER * num_params,
            )
            for layer, components in places
            for component, (num_params, active) in components.items()
        ),
        is_tied=False,
    )


def make_inspection(*, num_layers: int = 4, **changes: Any) -> Inspection:
    """Return an inspection of that model, with some fields changed."""
    table = make_table(num_layers=num_layers)
    inspection = Inspection(
        model="small-4x",
        model_type="mixtral",
        source=Source.SKELETON,
        revision=None,
        num_layers=num_layers,
        num_moe_layers=num_layers - 1,
        num_experts=8,
        top_k=2,
        num_shared_experts=0,
        anatomy=None,
        quantization=None,
        dtype="bfloat16",
        parameters=summarize(table),
        rows=tuple(pair_row(row, None) for row in table.rows),
        flops=FLOPS,
        files=None,
        published=None,
        reported=None,
        notes=(),
    )
    return replace(inspection, **changes)


def make_reported() -> Inspection:
    """Return a system that is known only from reports."""
    unknown = dict.fromkeys(
        (
            *("model_type", "num_layers", "num_moe_layers", "num_experts", "top_k"),
            *("num_shared_experts", "dtype", "parameters", "flops"),
        )
    )
    return replace(
        make_inspection(),
        model="closed-1",
        source=Source.REPORTED,
        rows=(),
        reported=REPORTED,
        notes=("Reported, never computed.", "Unconfirmed."),
        **unknown,
    )
