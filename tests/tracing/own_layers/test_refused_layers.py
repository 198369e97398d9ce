"""Layers that are refused: planted errors, and blocks whose output no weights describe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from moetool.errors import UntraceableError
from moetool.tracing.recording.watch.separate.proof import SumInBlock
from moetool.tracing.recording.watch.separate.search import SumSearch
from moetool.tracing.windows.probabilities import find_score_function
from tests.tracing.own_layers.modules.layers import (
    NUM_EXPERTS,
    DroppedPassThrough,
    RouterParameter,
    Surrounded,
    Tensor,
)
from tests.tracing.own_layers.modules.models import (
    Gpt,
)
from tests.tracing.own_layers.modules.odd_layers import (
    NUM_CALLS,
    REFUSED,
    SoftSlots,
    SoftSlotsWithScores,
)
from tests.tracing.own_layers.planted_errors import (
    off_by_one_per_cent,
    with_experts_exchanged,
    with_rows_exchanged,
    with_tokens_exchanged,
    without_a_token,
)
from tests.tracing.own_layers.recording import AnyLayer, make, record, states


def test_float16_is_refused_where_outputs_are_added_to_something() -> None:
    """Marks are lost next to other numbers there; in bfloat16 they are not."""
    with pytest.raises(UntraceableError, match="float16, which has no room for marks"):
        record(make(DroppedPassThrough).half(), states().half())
    (recorded,) = record(make(DroppedPassThrough).bfloat16(), states().bfloat16())
    assert (recorded.experts >= 0).any()


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_weights_describe_is_refused_and_left_as_it_was(what: str) -> None:
    kind, reason = REFUSED[what]
    NUM_CALLS[0] = 0
    layer = make(kind)
    modules = list(layer.modules())
    with pytest.raises(UntraceableError, match=f"Can't tell what {kind.__name__} routes: {reason}"):
        record(layer, states())
    assert list(layer.modules()) == modules
    assert not any(inner._forward_hooks or inner._forward_pre_hooks for inner in layer.modules())


@pytest.mark.parametrize("kind", [SoftSlots, SoftSlotsWithScores])
def test_slots_that_are_as_many_as_tokens_are_not_taken_for_them(
    kind: AnyLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UntraceableError, match="its experts receive other rows"):
        record(make(kind), states(1, NUM_EXPERTS))

    # A single check is what refuses them.
    monkeypatch.setattr(SumInBlock, "_check_rows_are_tokens", lambda *_: None)
    (recorded,) = record(make(kind), states(1, NUM_EXPERTS))
    assert recorded.experts.tolist() == [[0], [1], [2], [3]]


@pytest.mark.parametrize(
    "plant",
    [
        off_by_one_per_cent,
        with_experts_exchanged,
        with_tokens_exchanged,
        with_rows_exchanged,
        without_a_token,
    ],
)
@pytest.mark.parametrize("kind", [Surrounded, RouterParameter])
def test_planted_errors_of_a_search_are_noticed(
    plant: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    kind: AnyLayer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = SumSearch._read_group

    def read_wrong(self: SumSearch, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return plant(*read(self, *args, **kwargs))

    monkeypatch.setattr(SumSearch, "_read_group", read_wrong)
    with pytest.raises(UntraceableError, match="Can't tell what"):
        record(make(kind), states())


def test_probabilities_of_a_router_that_is_a_parameter_are_refused() -> None:
    (recorded,) = record(make(RouterParameter), states(), keep_scores=True)
    assert recorded.scores is None
    with pytest.raises(UntraceableError, match="returns no score for every expert"):
        find_score_function(recorded)


def test_saliency_of_a_searched_block_is_refused() -> None:
    model = make(lambda: Gpt(Surrounded()))
    with pytest.raises(UntraceableError, match=r"Can't record the saliency of h\.0\.moe\.experts"):
        record(model, torch.arange(6).view(1, 6), keep_saliency=True)
