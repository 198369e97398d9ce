"""Parts of layers that run, which stand for others whose arguments look the same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from moetool.simulation.memory.allocations import AllocationRecorder
from moetool.simulation.memory.timeline import Origins, Timeline
from moetool.simulation.meta.generation import TooManyOperations
from moetool.simulation.meta.known_values import KnownValues
from moetool.simulation.meta.meta_kernels import MetaKernels
from moetool.simulation.repeated.layer_outcomes import LayerOutcomes
from moetool.simulation.repeated.repeated_layers import RepeatedLayers
from moetool.simulation.repeated.repeated_parts import RepeatedParts
from tests.simulation.memory.memory_runs import Summary, summarize

NUM_LAYERS = 3
WIDTH = 8


class Block(nn.Module):
    """A part of a layer: it projects what it is given."""

    def __init__(self, does: Callable[..., Any] | None, *, num_modules: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(num_modules))
        self.does = does
        self.number_ran = 0

    def forward(self, hidden: torch.Tensor, **given: Any) -> Any:
        ran.append(self)
        projected = self.projections[0](hidden * 2).relu()
        return projected if self.does is None else self.does(self, projected, hidden, **given)


class Layer(nn.Module):
    """A layer that is like no other, and whose part is like those of others."""

    def __init__(self, number: int, does: Callable[..., Any] | None, num_modules: int) -> None:
        super().__init__()
        self.number = number
        self.block = Block(does, num_modules=num_modules)

    def forward(self, hidden: torch.Tensor, **given: Any) -> torch.Tensor:
        found = self.block(hidden + self.number, **given)
        first: torch.Tensor = found if isinstance(found, torch.Tensor) else found[0]
        mean = first.mean(-2, keepdim=True)
        return hidden + mean @ mean.transpose(-1, -2) @ mean


class Model(nn.Module):
    def __init__(self, does: Callable[..., Any] | None = None, *, num_modules: int = 1) -> None:
        super().__init__()
        with torch.device("meta"):
            self.layers = nn.ModuleList(
                Layer(number, does, num_modules) for number in range(NUM_LAYERS)
            )

    def forward(self, hidden: torch.Tensor, **given: Any) -> torch.Tensor:
        for layer in self.layers:
            hidden = layer(hidden, **given)
        return hidden


def make_model(make_layer: Callable[[int], Layer]) -> Model:
    """Return a model of other layers, each made by its number."""
    model = Model()
    with torch.device("meta"):
        model.layers = nn.ModuleList(map(make_layer, range(NUM_LAYERS)))
    return model


ran: list[Block] = []


def record(
    model: Model,
    *,
    has_parts: bool,
    lengths: tuple[int, ...] = (4, 5, 4),
    most_blocks: int | None = None,
    give: Callable[[KnownValues], dict[str, Any]] = lambda _: {},
) -> tuple[list[Summary], int]:
    """Return summaries of two runs of calls with different lengths, and the number of parts that ran.

    The second run has the outcomes of the first.
    """
    ran.clear()
    origins, outcomes = Origins(), LayerOutcomes()

    def run() -> Summary:
        known = KnownValues(token_id=0)
        recorder = AllocationRecorder(
            model, origins=origins, workspace_bytes=100, max_blocks_of_layer=most_blocks
        )
        parts = RepeatedParts(recorder, known, outcomes) if has_parts else None
        layers = RepeatedLayers(model, observers=[recorder], outcomes=outcomes, parts=parts)
        with ExitStack() as stack:
            for mode in (torch.inference_mode(), MetaKernels(), known, layers, recorder):
                stack.enter_context(mode)
            given = give(known)
            for length in lengths:
                output = model(torch.empty(1, length, WIDTH, device="meta"), **given)
                del output
            events = tuple(recorder.events)
        assert not any("forward" in vars(module) for module in model.modules())
        return summarize(Timeline(events, origins.found, (), recorder.workspace_block))

    return [run(), run()], len(ran)


def compare(does: Callable[..., Any] | None) -> tuple[int, int]:
    """Return the number of parts that ran, and the one in a run of the same timeline without any."""
    in_full, num_in_full = record(Model(does), has_parts=False)
    found, num_ran = record(Model(does), has_parts=True)
    assert found == in_full
    return num_ran, num_in_full


def return_several(_: Block, projected: torch.Tensor, *__: Any) -> Any:
    return projected, {"rest": (projected.sum(), None, 3)}


def write_in_place(_: Block, projected: torch.Tensor, hidden: torch.Tensor) -> Any:
    hidden.add_(projected)
    return projected


@pytest.mark.parametrize("does", [None, return_several, write_in_place])
def test_parts_that_do_the_same_run_once_for_each_length(does: Callable[..., Any] | None) -> None:
    # No layer runs in the third call, which is as long as the first.
    assert compare(does) == (2, 2 * NUM_LAYERS)


def return_view_of_what_it_was_given(_: Block, __: torch.Tensor, hidden: torch.Tensor) -> Any:
    return hidden[:, 1:]


def return_part_of_what_it_made(_: Block, projected: torch.Tensor, __: torch.Tensor) -> Any:
    return projected[:, 1:]


def return_two_views_of_what_it_made(_: Block, projected: torch.Tensor, __: torch.Tensor) -> Any:
    return projected, projected.view(-1)


def return_parameter(block: Block, *_: torch.Tensor) -> Any:
    return block.projections[0].get_parameter("weight").unsqueeze(0)


def keep_what_it_made(block: Block, projected: torch.Tensor, __: torch.Tensor) -> Any:
    vars(block)["last"] = projected + 1
    return projected


def count_its_calls(block: Block, projected: torch.Tensor, __: torch.Tensor) -> Any:
    block.number_ran += 1
    return projected


def replace_its_parameter(block: Block, projected: torch.Tensor, __: torch.Tensor) -> Any:
    bias = torch.empty(WIDTH, device="meta")
    block.projections[0].bias = nn.Parameter(bias, requires_grad=False)
    return projected


def hold_what_it_was_given(block: Block, projected: torch.Tensor, hidden: torch.Tensor) -> Any:
    block.projections[0].bias = nn.Parameter(hidden[0, 0], requires_grad=False)
    return projected


def return_known_values(_: Block, projected: torch.Tensor, __: torch.Tensor) -> Any:
    return projected, torch.arange(3, device="meta")


def read_values(_: Block, projected: torch.Tensor, __: torch.Tensor) -> Any:
    return projected[:, : torch.arange(9, device="meta").max().item() - 4].contiguous()


@pytest.mark.parametrize(
    "does",
    [
        return_view_of_what_it_was_given,
        return_part_of_what_it_made,
        return_two_views_of_what_it_made,
        return_parameter,
        keep_what_it_made,
        count_its_calls,
        replace_its_parameter,
        hold_what_it_was_given,
        return_known_values,
        read_values,
    ],
)
def test_parts_that_leave_more_than_new_tensors_or_read_values_run_each_time(
    does: Callable[..., Any],
) -> None:
    num_ran, num_in_full = compare(does)
    assert num_ran == num_in_full


def give_known_values(known: KnownValues) -> dict[str, Any]:
    known.know(known_tensor := torch.empty(2, device="meta"), torch.ones(2))
    return {"kept": known_tensor}


@pytest.mark.parametrize(
    ("give", "num_calls"),
    [
        (give_known_values, 2),
        # With a cache that has no slot for it, or an unknown object, each layer runs in each call.
        (lambda _: {"kept": DynamicCache()}, 6),
        (lambda _: {"kept": object()}, 6),
    ],
)
def test_parts_that_are_given_known_values_or_a_cache_run_each_time(
    give: Callable[[KnownValues], dict[str, Any]], num_calls: int
) -> None:
    def ignore_it(_: Block, projected: torch.Tensor, *__: Any, kept: Any) -> torch.Tensor:
        assert kept is not None
        return projected

    _, num_ran = record(Model(ignore_it), has_parts=True, give=give)
    assert num_ran == num_calls * NUM_LAYERS


def test_parts_that_append_to_what_they_are_given_run_each_time() -> None:
    def append(_: Block, projected: torch.Tensor, *__: Any, kept: list[int]) -> torch.Tensor:
        kept.append(3)
        return projected

    _, num_ran = record(Model(append), has_parts=True, give=lambda _: {"kept": []})
    assert num_ran == 6 * NUM_LAYERS


def test_large_parts_run_each_time() -> None:
    _, num_ran = record(Model(num_modules=40), has_parts=True)
    assert num_ran == 2 * NUM_LAYERS


def test_parts_of_other_modules_or_with_other_parameters_run() -> None:
    model: Any = Model()
    model.layers[1].block.projections[0].bias = None
    assert record(model, has_parts=True)[1] == 4
    model.layers[2].block.projections.append(nn.ReLU())
    assert record(model, has_parts=True)[1] == 6


def test_a_part_that_fails_leaves_the_workspaces_of_its_layer_as_they_were() -> None:
    def fail(*_: object) -> None:
        raise ValueError("no")

    class Careful(Layer):
        def forward(self, hidden: torch.Tensor, **_: Any) -> torch.Tensor:
            hidden = hidden @ hidden.transpose(-1, -2) @ hidden
            with pytest.raises(ValueError, match="no"):
                self.block(hidden)
            return hidden @ hidden.transpose(-1, -2) @ hidden

    in_full, found = (
        record(make_model(lambda _: Careful(0, fail, 1)), has_parts=has_parts)[0]
        for has_parts in (False, True)
    )
    assert found == in_full


def test_blocks_of_parts_that_do_not_run_count_as_their_layer_s() -> None:
    class Growing(Layer):
        """Ends with its part, and makes more blocks than the layer before."""

        def forward(self, hidden: torch.Tensor, **_: Any) -> torch.Tensor:
            for _number in range(self.number):
                hidden = hidden + 1
            found: torch.Tensor = self.block(hidden)
            return found

    def is_allowed(most_blocks: int, *, has_parts: bool) -> bool:
        model = make_model(lambda number: Growing(number, None, 1))
        try:
            record(model, has_parts=has_parts, most_blocks=most_blocks)
        except TooManyOperations:
            return False
        return True

    limits = range(1, 10)
    are_allowed = [is_allowed(most, has_parts=True) for most in limits]
    assert are_allowed == [is_allowed(most, has_parts=False) for most in limits]
    assert {*are_allowed} == {False, True}
