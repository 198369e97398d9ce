"""Placements fitted on a load table: counts of experts, without the tokens that chose them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.placement.measure import PlacementOptions, say_layer
from moetool.analysis.placement.methods.cluster import Cluster, spread_evenly
from moetool.analysis.placement.methods.eplb import place_by_load
from moetool.analysis.placement.random_router import RouterShape, draw_loads
from moetool.analysis.placement.result import (
    CONTIGUOUS,
    EPLB,
    METHODS,
    LayerPlacement,
    MethodPlacement,
    Placement,
    Split,
    name_layer,
)
from moetool.analysis.placement.scoring import PlacementScore, measure_imbalance, share_out
from moetool.analysis.placement.summary import average_scores, share_of_better
from moetool.analysis.statistics.halves import split_prompts
from moetool.errors import InputError
from moetool.printable import printable
from moetool.trace.loads.table import LoadTable
from moetool.trace.reading.counts import LayerCounts
from moetool.trace.reading.layer_shapes import check_layers
from moetool.wording import number_of

Place = tuple[str, int]

# Counts of all steps, layers and experts, 8 bytes each. Steps of larger tables are added up.
_MOST_CELLS = 2**26
# Sizes of steps that a random router is simulated for.
_SIZES = 16

_NEEDS_TOKENS = (
    "A load table has no tokens: placement by co-activation, fan-out and all-to-all bytes are "
    "unknown; give a trace for them."
)
_TRANSFER = (
    "A load table doesn't say what text its counts are from: load balance does not carry over to "
    "other domains."
)


def measure_load_placement(
    loads: LoadTable, cluster: Cluster, options: PlacementOptions
) -> Placement:
    """Return how contiguous placement and EPLB's compare on counts.

    With steps, placements are fitted on half of them and scored on the other half, a step as a
    batch. Without, they are scored on what they were fitted on.

    Raises:
        InputError: The table can't be read.
        UsageError: A layer's experts can't be shared out evenly, or there is no such layer.
    """
    counts = loads.to_counts(
        num_experts=options.num_experts, top_k=options.top_k, needs_top_k=False
    )
    layers = _choose_layers(counts.layers, options, loads=loads)
    for layer in layers:
        cluster.check_layer(say_layer(layer.stack, layer.layer), layer.num_experts)
    by_step = _read_steps(loads, layers)
    notes = [_TRANSFER, _NEEDS_TOKENS]
    num_steps = 0 if by_step is None else len(next(iter(by_step.values())))
    if by_step is None or num_steps < 2:
        by_step = {_place(layer): layer.assignments for layer in layers}
        held_out = np.ones(1, dtype=np.bool_)
        split = Split(None, 1, 1, options.seed)
        fitted = ~np.zeros(1, dtype=np.bool_)
        notes.append(
            "The table has no steps to hold out: placements are scored on the counts that they "
            "were fitted on, and batch imbalance is unknown."
        )
    else:
        names = [str(step) for step in range(num_steps)]
        held_out = split_prompts(names, seed=options.seed)
        fitted = ~held_out
        split = Split("step", int(fitted.sum()), int(held_out.sum()), options.seed)
        notes.append(
            f"Scores are of placements fitted on {number_of(split.num_fitted, 'step')} and scored on "
            f"{number_of(split.num_held_out, 'other')}; physical_to_logical and exports are fitted "
            "on all."
        )
    described = tuple(
        _describe_layer(
            layer,
            fitted=by_step[_place(layer)][fitted].sum(axis=0),
            steps=by_step[_place(layer)][held_out],
            cluster=cluster,
            has_batches=split.unit is not None,
        )
        for layer in layers
    )
    return Placement(
        trace=loads.describe(layers),
        by=None,
        cluster=cluster,
        tokens_per_batch=None,
        split=split,
        num_batches=0 if split.unit is None else split.num_held_out,
        groups=(),
        hidden_size=options.sent.hidden_size,
        bytes_per_value=options.sent.bytes_per_value,
        layers=described,
        methods=_describe_methods(described, layers, cluster),
        notes=(*notes, *counts.notes),
    )


def _describe_layer(
    layer: LayerCounts,
    *,
    fitted: NDArray[np.int64],
    steps: NDArray[np.int64],
    cluster: Cluster,
    has_batches: bool,
) -> LayerPlacement:
    scores, baseline = {}, {}
    # Counts are of experts that ran.
    shape = RouterShape(layer.num_experts, 0, ((layer.top_k, 1),), 1)
    sizes = steps.sum(axis=1) // layer.top_k
    sizes = (
        np.quantile(sizes[sizes > 0], np.linspace(0, 1, _SIZES), method="nearest")
        if (has_batches and sizes.any())
        else sizes[:0]
    )
    for method, slots in _place_by_load(fitted, cluster).items():
        share = share_out(slots, num_experts=layer.num_experts, num_parts=cluster.num_gpus)
        total = steps.sum(axis=0)
        busy = steps[steps.any(axis=1)]
        scores[method] = PlacementScore(
            batch_imbalance=float(measure_imbalance(busy @ share).mean()) if len(sizes) else None,
            global_imbalance=float(measure_imbalance((total @ share)[None])[0]),
            fan_out=None,
            node_fan_out=None,
        )
        means = [
            float(measure_imbalance(draw_loads(shape, num_tokens=size) @ share).mean())
            for size in (*sizes.tolist(), max(1, int(total.sum()) // layer.top_k))
        ]
        baseline[method] = PlacementScore(
            batch_imbalance=sum(means[:-1]) / len(sizes) if len(sizes) else None,
            global_imbalance=means[-1],
            fan_out=None,
            node_fan_out=None,
        )
    return LayerPlacement(
        stack=layer.stack,
        layer=layer.layer,
        num_experts=layer.num_experts,
        top_k=layer.top_k,
        num_tokens=int(layer.decisions.sum()),
        load=tuple(layer.assignments.sum(axis=0).tolist()),
        scores=scores,
        baseline=baseline,
    )


def _describe_methods(
    described: tuple[LayerPlacement, ...], layers: list[LayerCounts], cluster: Cluster
) -> dict[str, MethodPlacement | None]:
    final = {
        name_layer(layer.stack, layer.layer): _place_by_load(layer.assignments.sum(axis=0), cluster)
        for layer in layers
    }
    methods: dict[str, MethodPlacement | None] = dict.fromkeys(METHODS)
    for method in described[0].scores:
        pairs = [(layer.scores[method], layer.scores[EPLB]) for layer in described]
        methods[method] = MethodPlacement(
            **vars(average_scores([layer.scores[method] for layer in described])),
            baseline=average_scores([layer.baseline[method] for layer in described]),
            layers_better_than_eplb=None if method == EPLB else share_of_better(pairs),
            physical_to_logical={
                name: tuple(found[method].tolist()) for name, found in final.items()
            },
        )
    return methods


def _place_by_load(load: NDArray[np.int64], cluster: Cluster) -> dict[str, NDArray[np.int64]]:
    return {
        CONTIGUOUS: spread_evenly(len(load), cluster),
        EPLB: place_by_load(load.astype(np.float64), cluster),
    }


def _read_steps(
    loads: LoadTable, layers: list[LayerCounts]
) -> Mapping[Place, NDArray[np.int64]] | None:
    """Return each layer's counts by step; None without steps, or if they don't fit into memory.

    Returns:
        # (num_steps, num_experts)
    """
    if "step" not in loads.columns:
        return None
    frame = loads.to_frame()
    steps, step = np.unique(frame["step"].to_numpy(), return_inverse=True)
    if len(steps) * sum(layer.num_experts for layer in layers) > _MOST_CELLS:
        return None
    stack = frame["stack"].astype(str).to_numpy() if "stack" in frame else None
    by_step = {}
    for layer in layers:
        mine = frame["layer"].to_numpy() == layer.layer
        if stack is not None:
            mine = mine & (stack == layer.stack)
        cells = np.zeros((len(steps), layer.num_experts), dtype=np.int64)
        rows = frame[mine]
        np.add.at(cells, (step[mine], rows["expert"].to_numpy()), rows["count"].to_numpy())
        by_step[_place(layer)] = cells
    return by_step


def _choose_layers(
    layers: tuple[LayerCounts, ...], options: PlacementOptions, *, loads: LoadTable
) -> list[LayerCounts]:
    chosen = [layer for layer in layers if options.layers is None or layer.layer in options.layers]
    check_layers(loads.path, (layer.layer for layer in layers), options.layers)
    idle = [layer for layer in chosen if not layer.assignments.any()]
    if len(idle) == len(chosen):
        raise InputError(
            f"'{printable(loads.path)}' counts no assignment in any layer.",
            hint="Import it again, or record more requests.",
        )
    # Dense layers of engines' dumps are rows of zeros.
    return [layer for layer in chosen if layer.assignments.any()]


def _place(layer: LayerCounts) -> Place:
    return layer.stack, layer.layer
