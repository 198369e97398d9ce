"""Layers that are not like others: identity experts, several stacks, experts that did not run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moetool import select_experts
from moetool.errors import UsageError
from moetool.interchange.exports.selection_formats import SelectionFormat
from moetool.interchange.exports.selections import render_selection
from moetool.trace.metadata import RoutedLayer, TraceMetadata

EXPERTS = RoutedLayer(
    stack="decoder",
    layer=2,
    module="model.layers.2.mlp.experts",
    router=None,
    num_experts=4,
    num_identity_experts=2,
    top_k=2,
)


def make_frame(
    decisions: list[tuple[int, int]], *layers: RoutedLayer, **columns: Any
) -> pd.DataFrame:
    """Return decisions of two experts each, of ten prompts that say the same."""
    experts = np.array(decisions * 10)
    position = np.tile(np.arange(len(decisions)), 10)
    frame = pd.DataFrame(
        {
            "prompt_id": np.repeat([f"p{index}" for index in range(10)], 2 * len(decisions)),
            "position": np.repeat(position, 2),
            "layer": layers[0].layer,
            "rank": np.tile([0, 1], len(experts)),
            "expert": experts.ravel(),
            "weight": np.where(experts < 0, 0, [0.75, 0.25]).ravel().astype(np.float32),
            **columns,
        }
    )
    frame.attrs["moetool"] = TraceMetadata(complete=True, layers=layers).to_dict()
    return frame


def test_identity_experts_are_neither_selected_nor_dropped() -> None:
    # Experts 4 and 5 have no parameters; 4 gets half of the assignments.
    frame = make_frame([(4, 0), (4, 1), (0, 4), (4, 2)], EXPERTS)
    found = select_experts(frame, top_p=0.3, prune_ratio=0.25)
    (layer,) = found.layers
    assert layer.scores == (0.25, 0.125, 0.125, 0.0, 0.5, 0.0)
    assert layer.selected == (0, 1)
    assert layer.missed == (3, 5)
    assert found.pruning is not None
    assert found.pruning.retained == {"model.layers.2.mlp": (0, 1, 2)}
    assert any("Identity experts" in note for note in found.notes)


def test_an_expert_that_did_not_run_has_no_share() -> None:
    frame = make_frame([(0, -1), (1, 0), (0, 3), (0, -1)], replace(EXPERTS, num_identity_experts=0))
    token, gate = (select_experts(frame, by=by).layers[0] for by in ("token", "gate"))
    assert token.scores == (0.5, 0.125, 0.0, 0.125)
    assert token.total_score == pytest.approx(0.75)
    assert gate.scores == (0.625, 0.1875, 0.0, 0.0625)


def test_layers_of_several_stacks_are_named_after_them_and_esft_is_refused() -> None:
    encoder = replace(EXPERTS, stack="encoder", module="encoder.layers.2.mlp.experts")
    parts = [
        make_frame([(0, 1), (0, 2)], EXPERTS, encoder, stack=stack)
        for stack in ("decoder", "encoder")
    ]
    frame = pd.concat(parts)
    frame.attrs["moetool"] = parts[0].attrs["moetool"]
    found = select_experts(frame, prune_ratio=0.25)
    assert found.experts == {"decoder.2": (0,), "encoder.2": (0,)}
    assert found.pruning is not None
    assert list(found.pruning.retained) == ["model.layers.2.mlp", "encoder.layers.2.mlp"]
    with pytest.raises(UsageError, match="several stacks"):
        render_selection(found, SelectionFormat.ESFT)


def test_a_layer_without_rows_has_an_empty_list() -> None:
    other = replace(EXPERTS, layer=5, module="model.layers.5.mlp.experts")
    found = select_experts(make_frame([(0, 1), (0, 2)], EXPERTS, other))
    assert found.experts == {"2": (0,), "5": ()}
    assert [layer.scores is None for layer in found.layers] == [False, True]
    assert any("1 layer without decisions" in note for note in found.notes)
