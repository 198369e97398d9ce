"""Shortened loops, compared with the same loops when every iteration runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from moetool.memory.simulated.work import measure_work
from moetool.simulation.memory.memory_run import BlockBudget, MemoryRun, RunOptions
from moetool.simulation.memory.replay.memory_replay import replay_timeline
from moetool.simulation.memory.replay.weight_sizes import list_weight_bytes
from moetool.simulation.memory.seen_runs import GivenTokens, SeenRuns
from moetool.simulation.memory.steps.unrolled_loops import unroll_whole
from moetool.simulation.meta.generation import TooManyOperations
from tests.simulation.loops.recorded_loops import NUM_ROWS, Count, name_events, record
from tests.simulation.memory.memory_runs import summarize
from tests.simulation.skeletons import build_family_skeleton

# Layers that go through a prompt in chunks of 64 tokens.
IN_CHUNKS = ["qwen3_next", "qwen3_5_moe_text"]


class SteadyScan(nn.Module):
    """Replaces its state by one of the same shape, and keeps what it made last until the next."""

    def forward(self, rows: torch.Tensor, state: torch.Tensor) -> Any:
        written = torch.zeros_like(rows)
        for index in range(len(rows)):
            product = rows[index] @ state.transpose(0, 1)
            written[index] = product
            state = state * 2 + product
        return written, state


class GrowingScan(nn.Module):
    """Makes its state longer each time."""

    def forward(self, rows: torch.Tensor, state: torch.Tensor) -> Any:
        for index in range(len(rows)):
            state = torch.cat([state, rows[index]])
        return state


class CountingScan(nn.Module):
    """Counts its iterations in a tensor, and makes as many numbers in the end."""

    def forward(self, rows: torch.Tensor, state: torch.Tensor) -> Any:
        count = torch.zeros((), dtype=torch.long, device=rows.device)
        for index in range(len(rows)):
            state = state @ rows[index]
            count = count + 1
        return state.new_empty(int(count))


class ListingScan(nn.Module):
    """Keeps what each iteration made in lists, some of it in the state that it goes on with."""

    def forward(self, rows: torch.Tensor, state: torch.Tensor) -> Any:
        made, states = [], []
        for index in range(len(rows)):
            state = state * 2 + rows[index]
            made.append(state.exp()[0])
            made.append(state.exp()[:, 1])
            states.append(state)
        return torch.stack(made), torch.stack(states), state


class GivenScan(nn.Module):
    """Keeps a part of what it was given in a list."""

    def forward(self, rows: torch.Tensor, state: torch.Tensor) -> Any:
        made = []
        for index in range(len(rows)):
            state = state * 2
            made.append(rows[index])
        return torch.stack(made), state


class InPlaceScan(nn.Module):
    """Makes nothing."""

    def forward(self, rows: torch.Tensor, state: torch.Tensor) -> Any:
        for index in range(len(rows)):
            rows[index] *= state
        return rows


class ChangingScan(nn.Module):
    """Does something else in the second half, which only the values of a mask say."""

    def forward(self, rows: torch.Tensor, state: torch.Tensor) -> Any:
        late = torch.arange(len(rows), device=rows.device) >= len(rows) // 2
        masks = late[:, None].repeat(1, rows.shape[1])
        for index in range(len(rows)):
            state = rows[index][masks[index]]
        return state


def test_iterations_left_out_are_those_that_would_have_run() -> None:
    short = record(SteadyScan(), is_shortened=True)
    whole = record(SteadyScan(), is_shortened=False)
    # The first two, another to which the second is alike, and the last one.
    assert [loop.num_left_out for loop in short.loops] == [NUM_ROWS - 4]
    unrolled = unroll_whole(short)
    assert name_events(unrolled) == name_events(whole)
    assert unrolled.calls == whole.calls
    assert unrolled.workspace_block == whole.workspace_block


@pytest.mark.parametrize(
    ("kind", "is_whole"),
    [
        (GrowingScan, True),
        (CountingScan, True),
        (ChangingScan, True),
        (GivenScan, True),
        (ListingScan, False),
        (InPlaceScan, False),
    ],
)
def test_loops_that_can_not_be_left_out_leave_the_same_events(
    kind: Callable[[], nn.Module], is_whole: bool
) -> None:
    with Count() as short_operations:
        short = record(kind(), is_shortened=True)
    with Count() as operations:
        whole = record(kind(), is_shortened=False)
    assert short.loops == ()
    assert name_events(short) == name_events(whole)
    assert (short_operations.number == operations.number) == is_whole


@pytest.mark.parametrize("kind", [SteadyScan, ListingScan])
def test_a_layer_makes_too_many_blocks_with_and_without_the_iterations_left_out(
    kind: Callable[[], nn.Module],
) -> None:
    def is_refused(max_blocks: int, *, is_shortened: bool) -> bool:
        try:
            record(kind(), is_shortened=is_shortened, max_blocks=max_blocks)
        except TooManyOperations:
            return True
        return False

    whole = record(kind(), is_shortened=False)
    most = len({event.block for event in whole.events})
    refused = [is_refused(limit, is_shortened=True) for limit in range(most + 1)]
    assert refused == [is_refused(limit, is_shortened=False) for limit in range(most + 1)]
    assert refused[0]
    assert not refused[-1]


def test_a_layer_that_goes_from_token_to_token_is_noticed_after_a_few() -> None:
    skeleton = build_family_skeleton("jamba").eval()
    seen = SeenRuns()
    run = MemoryRun(skeleton, RunOptions(block_budget=BlockBudget(per_layer=400)), seen=seen)
    with Count() as operations, pytest.raises(TooManyOperations):
        run.generate(num_prompt_tokens=500, num_new_tokens=1)
    assert operations.number < 500


def test_a_layer_that_goes_from_token_to_token_leaves_the_events_of_all_tokens() -> None:
    skeleton = build_family_skeleton("jamba").eval()
    lengths = {"num_prompt_tokens": 150, "num_new_tokens": 2}
    options = RunOptions(batch_size=2, workspace_bytes=2**20, may_scan=True)
    with Count() as operations:
        short = MemoryRun(skeleton, options).generate(**lengths)
    whole = MemoryRun(skeleton, options, is_each_layer_run=True).generate(**lengths)
    assert operations.number < 150 * 8
    assert summarize(short) == summarize(whole)


@pytest.mark.parametrize("family", IN_CHUNKS)
@pytest.mark.parametrize(("num_tokens", "batch_size"), [(700, 1), (1030, 3)])
def test_a_generation_is_that_of_layers_and_loops_run_each_time(
    family: str, num_tokens: int, batch_size: int
) -> None:
    skeleton = build_family_skeleton(family).eval()
    options = RunOptions(batch_size=batch_size, workspace_bytes=2**20, lt_workspace_bytes=2**10)
    lengths = {"num_prompt_tokens": num_tokens, "num_new_tokens": 2}
    short = MemoryRun(skeleton, options).generate(**lengths)
    whole = MemoryRun(skeleton, options, is_each_layer_run=True).generate(**lengths)
    assert {loop.num_left_out for loop in short.loops} == {-(-num_tokens // 64) - 3}
    unrolled = unroll_whole(short)
    assert summarize(unrolled) == summarize(whole)
    weight_bytes = list_weight_bytes(skeleton)
    profile = replay_timeline(unrolled, weight_bytes=weight_bytes)
    assert replay_timeline(short, weight_bytes=weight_bytes) == profile
    assert measure_work(skeleton, short) == measure_work(skeleton, unrolled)


def test_a_prompt_with_more_chunks_is_expected_from_shorter_ones() -> None:
    skeleton = build_family_skeleton("qwen3_next").eval()
    seen = SeenRuns()
    run = MemoryRun(skeleton, RunOptions(), seen=seen)
    for num_tokens in (520, 600, 750):
        run.generate(num_prompt_tokens=num_tokens, num_new_tokens=2)
    expected = seen.expect(1, GivenTokens(1000))
    ran = MemoryRun(skeleton, RunOptions()).generate(num_prompt_tokens=1000, num_new_tokens=2)
    assert expected is not None
    assert expected.loops == ran.loops
    assert expected.calls == ran.calls
    end = ran.calls[1].end_event
    assert name_events(expected) == name_events(ran)[:end]
