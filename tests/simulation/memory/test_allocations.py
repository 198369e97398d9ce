"""Births and deaths of storages, and the places in a model that they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moetool.simulation.memory.allocations import AllocationRecorder
from moetool.simulation.memory.timeline import Event, Origin, Origins
from moetool.simulation.repeated.observers import LayerVisit
from moetool.simulation.repeated.repeated_layers import RepeatedLayers
from tests.simulation.memory.layered_model import Model, do_nothing, meta


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def recorder() -> Iterator[AllocationRecorder]:
    with AllocationRecorder(nn.Module(), origins=Origins(), workspace_bytes=100) as recorder:
        yield recorder


def steps(recorder: AllocationRecorder) -> list[tuple[int, int]]:
    """Return blocks with the bytes of their births, or -1."""
    return [(event.block, event.num_bytes) for event in recorder.events]


def test_memory_is_taken_at_a_tensor_s_birth_and_given_back_at_its_death(
    recorder: AllocationRecorder,
) -> None:
    first = meta(10)
    second = first + 1
    del first
    third = second.double()
    assert steps(recorder) == [(0, 40), (1, 40), (0, -1), (2, 80)]
    assert recorder.find_block(third) == 2
    assert recorder.count_bytes(2) == 80
    del second, third
    assert steps(recorder)[4:] == [(1, -1), (2, -1)]


def test_views_and_what_is_written_in_place_take_none(recorder: AllocationRecorder) -> None:
    rows = meta(4, 5)
    view = rows.t().reshape(5, 4)[1:].unsqueeze(0).expand(3, 4, 4)
    rows.add_(1)
    rows.view(20).copy_(meta(()))
    assert steps(recorder) == [(0, 80), (1, 4), (1, -1)]
    assert recorder.find_block(view) == recorder.find_block(rows) == 0
    del rows
    assert len(recorder.events) == 3
    del view
    assert steps(recorder)[3:] == [(0, -1)]


def test_an_operation_of_several_results_takes_memory_for_each(
    recorder: AllocationRecorder,
) -> None:
    values, places = meta(2, 8).topk(3)
    assert steps(recorder) == [(0, 64), (1, 24), (2, 48), (0, -1)]
    assert (recorder.find_block(values), recorder.find_block(places)) == (1, 2)


def attend(rows: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(rows, rows, rows)


@pytest.mark.parametrize(
    ("run", "sizes"),
    [
        (lambda: F.linear(meta(2, 3), meta(4, 3), meta(4)), [24, 48, 16, 100, 32]),
        (lambda: meta(2, 3).t().reshape(6), [24, 24]),
        (lambda: meta(2, 3).t().contiguous(), [24, 24]),
        (lambda: meta(2, 3).contiguous(), [24]),
        (lambda: F.softmax(meta(2, dtype=torch.bfloat16), -1, dtype=torch.float32), [4, 8, 8]),
        (lambda: meta(2, 3).repeat_interleave(2, dim=0), [24, 48]),
        (lambda: attend(meta(1, 1, 2, 4)), [32, 8, 8, 32, 256]),
    ],
)
def test_operations_are_taken_apart_down_to_kernels(
    recorder: AllocationRecorder, run: Callable[[], object], sizes: list[int]
) -> None:
    run()
    assert [event.num_bytes for event in recorder.events if event.num_bytes >= 0] == sizes


def test_what_a_kernel_takes_for_itself_dies_as_soon_as_it_has_run(
    recorder: AllocationRecorder,
) -> None:
    query = meta(1, 1, 2, 4)
    mask = meta(2, 2, dtype=torch.bool)
    output = F.scaled_dot_product_attention(query, query, query, mask)
    assert steps(recorder) == [
        (0, 32), (1, 4),
        (2, 16), (3, 8), (4, 8), (5, 32), (6, 256),
        (6, -1), (4, -1), (3, -1), (2, -1),
    ]  # fmt: skip
    assert recorder.find_block(output) == 5


def test_the_first_product_takes_a_workspace_for_good(recorder: AllocationRecorder) -> None:
    left = meta(2, 2)
    for _ in range(2):
        left @ left
    assert recorder.workspace_block == 1
    assert steps(recorder) == [(0, 16), (1, 100), (2, 16), (2, -1), (3, 16), (3, -1)]


def test_the_first_product_with_a_bias_takes_another_workspace_for_good() -> None:
    recorder = AllocationRecorder(
        nn.Module(), origins=Origins(), workspace_bytes=100, lt_workspace_bytes=7
    )
    with recorder:
        left = meta(2, 2)
        left @ left
        for _ in range(2):
            F.linear(left, left, left[0])
    assert (recorder.workspace_block, recorder.lt_workspace_block) == (1, 3)
    assert steps(recorder) == [
        (0, 16), (1, 100), (2, 16), (2, -1), (3, 7), (4, 16), (4, -1), (5, 16), (5, -1),
    ]  # fmt: skip


def test_a_bias_in_the_first_product_takes_both_workspaces() -> None:
    recorder = AllocationRecorder(
        nn.Module(), origins=Origins(), workspace_bytes=100, lt_workspace_bytes=7
    )
    with recorder:
        F.linear(meta(2, 2), meta(2, 2), meta(2))
    assert (recorder.workspace_block, recorder.lt_workspace_block) == (3, 4)


def test_a_layer_that_takes_cublaslt_s_workspace_can_be_repeated() -> None:
    model = Model(do_nothing, num_layers=3)
    recorder = AllocationRecorder(
        model, origins=Origins(), workspace_bytes=100, lt_workspace_bytes=7
    )
    with RepeatedLayers(model, observers=[recorder]) as layers, recorder:
        model(is_kept=False)
    taken = [event.num_bytes for event in recorder.events]
    assert taken.count(100) == taken.count(7) == 1
    assert layers.num_repeated == 2


def test_an_operation_that_makes_nothing_takes_nothing(recorder: AllocationRecorder) -> None:
    rows = meta(2, 2)
    torch.sort(rows.view(4), out=(rows.view(4), meta(4, dtype=torch.int64)))
    assert [size for _, size in steps(recorder)] == [16, 32, -1]


def test_the_model_s_own_memory_is_not_recorded() -> None:
    with torch.device("meta"):
        model = nn.BatchNorm1d(3)
    with AllocationRecorder(model, origins=Origins()) as recorder:
        scale = model.weight.view(3, 1)
        assert recorder.find_block(model.weight) is None
        assert recorder.find_block(scale) is None
        del scale
        scaled = model.weight * 2
    assert [event.num_bytes for event in recorder.events] == [12]
    assert recorder.find_block(scaled) == 0


def test_memory_at_the_address_of_a_parameter_that_was_replaced_is_recorded() -> None:
    model = nn.Linear(4, 4, device="meta", dtype=torch.bfloat16)
    with AllocationRecorder(model, origins=Origins()) as recorder:
        model.float()
        made = [meta(10) + 1 for _ in range(100)]
    sizes = [event.num_bytes for event in recorder.events]
    # The parameters' copies, then for each tensor its empty operand, which dies, and itself.
    assert sizes.count(40) == 2 * len(made)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_only_one_device_is_followed(device: str) -> None:
    with AllocationRecorder(nn.Module(), origins=Origins(), device=device) as recorder:
        there, elsewhere = torch.zeros(3, device="cpu"), torch.zeros(4, device="meta")
        sizes = [event.num_bytes for event in recorder.events]
    followed = {"cpu": there, "meta": elsewhere}[device]
    assert sizes == [followed.nbytes]


def test_places_are_numbered_once() -> None:
    origins = Origins()
    numbers = [origins.number("layers.0", "mlp", name) for name in ("mm", "add", "mm")]
    numbers.append(origins.number("layers.1", "mlp", "mm"))
    assert numbers == [0, 1, 0, 2]
    assert origins.found[1] == Origin(layer="layers.0", module="mlp", operation="add")


def end_of_layer(
    does: Callable[[torch.Tensor], Sequence[torch.Tensor]],
) -> tuple[AllocationRecorder, Any]:
    """Return a recorder's record of a layer that is given a tensor and leaves some behind."""
    recorder = AllocationRecorder(nn.Module(), origins=Origins())
    with recorder:
        given = meta(2)
        mark = recorder.begin_layer(LayerVisit("layers.0", (given,)))
        left = does(given)
        return recorder, recorder.end_layer(mark, left)


def test_what_a_layer_did_is_told_by_what_it_found_and_made() -> None:
    other = meta(2)

    def make(given: torch.Tensor) -> list[torch.Tensor]:
        first = given + 1
        second = first + 1
        return [second, given, other]

    _, done = end_of_layer(make)
    assert [*zip(*done.events[:2], strict=True)] == [(0, 8), (1, 8), (0, -1)]
    assert done.num_made == 2
    assert done.left == (1, -1, None)


def test_a_layer_that_keeps_what_it_made_to_itself_stands_for_no_other() -> None:
    kept: list[torch.Tensor] = []

    def make(given: torch.Tensor) -> list[torch.Tensor]:
        kept.append(given + 1)
        return [kept[0] + 1]

    _, done = end_of_layer(make)
    assert done is None


def test_a_layer_that_leaves_behind_what_it_neither_made_nor_found_stands_for_no_other() -> None:
    recorder = AllocationRecorder(nn.Module(), origins=Origins())
    with recorder:
        given, hidden_away = meta(2), meta(3)
        mark = recorder.begin_layer(LayerVisit("layers.0", (given,)))
        assert recorder.end_layer(mark, [hidden_away]) is None


def test_a_layer_that_frees_what_it_did_not_find_stands_for_no_other() -> None:
    recorder = AllocationRecorder(nn.Module(), origins=Origins())
    with recorder:
        given, hidden_away = meta(2), meta(3)
        mark = recorder.begin_layer(LayerVisit("layers.0", (given,)))
        del hidden_away
        assert recorder.end_layer(mark, [given]) is None


def test_layers_that_find_memory_shared_differently_are_not_the_same() -> None:
    recorder = AllocationRecorder(nn.Module(), origins=Origins())
    with recorder:
        rows, others = meta(4), meta(4)
        described = [
            recorder.describe(LayerVisit("layers.0", found))
            for found in ((rows, others), (others, rows), (rows, rows[1:]), (rows[1:], rows))
        ]
    assert described[0] == described[1] != described[2] == described[3]


def test_places_are_told_by_layer_and_module() -> None:
    model, origins = Model(do_nothing, num_layers=2), Origins()
    recorder = AllocationRecorder(model, origins=origins)
    with RepeatedLayers(model, observers=[recorder]), recorder:
        model(is_kept=False)
    assert recorder.workspace_block is not None
    births = [event for event in recorder.events if event.num_bytes > 0]
    assert [origins.found[event.origin] for event in births] == [
        Origin("", "", "empty"),
        Origin("layers.0", "inner.projection", "addmm"),
        Origin("layers.0", "", "relu"),
        Origin("layers.1", "inner.projection", "addmm"),
        Origin("layers.1", "", "relu"),
        Origin("", "head", "addmm"),
    ]


def test_hooks_are_taken_away_and_places_left_even_after_an_error() -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no")

    model, origins = Model(fail), Origins()
    with AllocationRecorder(model, origins=origins) as recorder:
        with pytest.raises(ValueError, match="no"):
            model(is_kept=False)
        outside = meta(7)
    assert recorder.events[-1] == Event(recorder.find_block(outside) or 0, 28, 0)
    assert origins.found[0] == Origin("", "", "empty")
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
