"""Notes on a trace's weights, in a sentence each."""

from __future__ import annotations

import pytest

from moetool.trace.metadata import RoutedLayer, TraceMetadata
from moetool.tracing.windows.routed_layers import note_routing


@pytest.mark.parametrize(("num_layers", "where"), [(1, "In 1 layer the"), (3, "In 3 layers the")])
@pytest.mark.parametrize(
    ("factor", "words"), [(2.5, "multiplies the sum of its experts by 2.5"), (None, "does more")]
)
def test_blocks_that_change_the_sum_of_their_experts_are_counted(
    num_layers: int, where: str, factor: float | None, words: str
) -> None:
    (note,) = note_routing(TraceMetadata(), make_layers(num_layers, factor)).notes
    assert note.startswith(f"{where} block {words}")


def make_layers(num_layers: int, factor: float | None) -> list[RoutedLayer]:
    return [
        RoutedLayer(
            stack="decoder",
            layer=number,
            module="",
            router=None,
            num_experts=8,
            num_identity_experts=0,
            top_k=2,
            output_factor=factor,
        )
        for number in range(num_layers)
    ]


@pytest.mark.parametrize(("num_layers", "where"), [(1, ""), (3, " in 1 layer")])
def test_layers_that_weigh_the_inputs_of_their_experts_are_counted(
    num_layers: int, where: str
) -> None:
    layers = make_layers(num_layers, 1.0)
    (note,) = note_routing(TraceMetadata(), layers, weigh_input=1).notes
    assert note == f"The weights{where} scale the experts' inputs, not their outputs."
