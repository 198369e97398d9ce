"""Layers, and the load of their experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moetool.analysis.balance.layer_result import LayerBalance
from moetool.analysis.balance.result import Balance
from moetool.report.page.contents import PageContents
from moetool.report.page.payload.values.numbers import shorten
from moetool.trace.facts import LayerFacts


def list_layers(contents: PageContents) -> list[LayerFacts]:
    """Return the layers that the page shows, in the order of stack and layer."""
    for result in (contents.balance, contents.specialization, contents.coactivation):
        if result is not None:
            # Only of a load table are top-k and the number of tokens unknown.
            return [
                LayerFacts(
                    stack=layer.stack,
                    layer=layer.layer,
                    num_experts=layer.num_experts,
                    top_k=layer.top_k or 0,
                    num_tokens=layer.num_tokens or 0,
                )
                for layer in result.layers
            ]
    return []


def make_layers(layers: Sequence[LayerFacts]) -> list[dict[str, Any]]:
    """Return what identifies each layer, and its size."""
    has_stacks = len({layer.stack for layer in layers}) > 1
    return [
        {
            "stack": layer.stack,
            "layer": layer.layer,
            "name": f"{layer.stack} {layer.layer}" if has_stacks else str(layer.layer),
            "num_experts": layer.num_experts,
            "top_k": layer.top_k,
            "num_tokens": layer.num_tokens,
        }
        for layer in layers
    ]


def make_load(balance: Balance | None) -> dict[str, Any] | None:
    """Return the load of every expert and what a random router's would be; None if unknown."""
    if balance is None:
        return None
    return {"layers": [_make_layer(layer) for layer in balance.layers]}


def _make_layer(layer: LayerBalance) -> dict[str, Any]:
    prompts = layer.prompts_choosing
    return {
        "load": list(layer.load),
        "prompts_choosing": None if prompts is None else list(prompts),
        "num_prompts": layer.num_prompts,
        "max_over_mean": shorten(layer.max_over_mean),
        "random_max_over_mean": shorten(layer.baseline.max_over_mean),
        "batch_max_over_mean": shorten(layer.max_over_mean_batch),
        "random_batch_max_over_mean": shorten(layer.baseline.max_over_mean_batch),
        "num_dead": shorten(layer.num_dead),
        "random_num_dead": shorten(layer.baseline.num_dead),
    }
