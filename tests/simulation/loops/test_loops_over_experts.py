"""Shortened loops over experts, compared with all iterations, and with real runs on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from moetool.memory.simulated.work import measure_work
from moetool.simulation.loops.row_bodies import find_row_loop_body
from moetool.simulation.memory.memory_run import MemoryRun, RunOptions
from moetool.simulation.memory.replay.memory_replay import replay_timeline
from moetool.simulation.memory.replay.weight_sizes import list_weight_bytes
from moetool.simulation.memory.steps.unrolled_loops import unroll_whole
from tests.families.tiny.models import build_family
from tests.simulation.loops.recorded_loops import Count, find_first_line, name_events, record
from tests.simulation.memory.memory_runs import generate_on_cpu, set_up, summarize
from tests.simulation.skeletons import build_family_skeleton

NUM_EXPERTS = 24
TOP_K = 3
# 40 tokens choose 120 experts, and 44 choose 132: half of the experts then get one more.
EVEN, UNEVEN = 40, 44
# One family's experts always run one by one, those of the others on request.
FAMILIES: dict[str, dict[str, Any]] = {
    "step3p7": {"text_config": {"moe_num_experts": NUM_EXPERTS}},
    "qwen3_moe": {"num_experts": NUM_EXPERTS},
}


class Experts(nn.Module):
    """Experts that run one by one, for tokens that choose them in turns."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts = NUM_EXPERTS
        self.up = nn.Parameter(torch.empty(NUM_EXPERTS, 4, 4, device="meta"))
        self.activation = nn.SiLU()

    def forward(self, rows: torch.Tensor, state: torch.Tensor) -> Any:
        chosen = torch.arange(TOP_K * len(rows), device=rows.device) % NUM_EXPERTS
        mask = F.one_hot(chosen.view(-1, TOP_K), num_classes=NUM_EXPERTS + 1).permute(2, 1, 0)
        hit = torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero()
        return self.go_through(hit, mask, rows, state)

    def go_through(
        self, hit: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor, state: torch.Tensor
    ) -> Any:
        final = torch.zeros_like(rows)
        for expert in hit:
            expert = expert[0]
            if expert == self.num_experts:
                continue
            tokens = torch.where(mask[expert])[1]
            current = self.gate(F.linear(rows[tokens], self.up[expert]) @ state)
            final.index_add_(0, tokens, current)
        return final

    def gate(self, current: torch.Tensor) -> torch.Tensor:
        activated: torch.Tensor = self.activation(current)
        return activated * current


class ListingExperts(Experts):
    """Keeps what each expert made in a list."""

    def go_through(
        self, hit: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor, state: torch.Tensor
    ) -> Any:
        made = []
        for expert in hit:
            expert = expert[0]
            tokens = torch.where(mask[expert])[1]
            made.append(self.gate(F.linear(rows[tokens], self.up[expert]) @ state))
        return torch.cat(made)


class CountingExperts(Experts):
    """Counts the tokens so far, and makes as many numbers in the end."""

    def go_through(
        self, hit: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor, state: torch.Tensor
    ) -> Any:
        count = torch.zeros((), dtype=torch.long, device=rows.device)
        for expert in hit:
            expert = expert[0]
            tokens = torch.where(mask[expert])[1]
            state = state @ F.linear(rows[tokens], self.up[expert]).sum(0)
            count = count + tokens.ne(-1).sum()
        return state.new_empty(int(count))


class ReadingExperts(Experts):
    """Goes on with as many rows as the number of its first token, which it reads."""

    def go_through(
        self, hit: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor, state: torch.Tensor
    ) -> Any:
        for expert in hit:
            expert = expert[0]
            tokens = torch.where(mask[expert])[1]
            state = F.linear(rows[: tokens[0].item() + 1], self.up[expert])
        return state


class MaskingExperts(Experts):
    """Looks at the tokens through flags, whose number differs from one expert to the next."""

    def go_through(
        self, hit: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor, state: torch.Tensor
    ) -> Any:
        is_early = torch.arange(len(rows), device=rows.device) < len(rows) // 2
        for expert in hit:
            expert = expert[0]
            tokens = torch.where(mask[expert])[1]
            state = rows[tokens][is_early[tokens]] @ self.up[expert]
        return state


class ForgettingExperts(Experts):
    """Takes tokens away from all later experts, through another view of the mask."""

    def go_through(
        self, hit: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor, state: torch.Tensor
    ) -> Any:
        flags = mask.view(mask.shape)
        for expert in hit:
            expert = expert[0]
            tokens = torch.where(mask[expert])[1]
            state = rows[tokens] @ self.up[expert]
            flags[:, :, 0] = 0
        return state


class GrowingExperts(Experts):
    """Makes its state longer each time."""

    def go_through(
        self, hit: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor, state: torch.Tensor
    ) -> Any:
        for expert in hit:
            expert = expert[0]
            tokens = torch.where(mask[expert])[1]
            state = torch.cat((state, F.linear(rows[tokens], self.up[expert])[0]))
        return state


class CallingExperts(Experts):
    """Calls a method that does something else after some experts."""

    num_calls = 0

    def gate(self, current: torch.Tensor) -> torch.Tensor:
        self.num_calls += 1
        return current if self.num_calls < NUM_EXPERTS // 2 else current.exp() * current


@pytest.mark.parametrize(("num_rows", "num_left_out"), [(EVEN, [20]), (UNEVEN, [8, 9])])
def test_experts_left_out_are_those_that_would_have_run(
    num_rows: int, num_left_out: list[int]
) -> None:
    """Three or two run of those that get the same number of tokens, and the last of them."""
    short = record(Experts(), is_shortened=True, num_rows=num_rows)
    whole = record(Experts(), is_shortened=False, num_rows=num_rows)
    assert [loop.num_left_out for loop in short.loops] == num_left_out
    unrolled = unroll_whole(short)
    assert name_events(unrolled) == name_events(whole)
    assert unrolled.calls == whole.calls


@pytest.mark.parametrize("num_rows", [EVEN, UNEVEN])
@pytest.mark.parametrize(
    ("kind", "is_whole"),
    [
        (ListingExperts, False),
        (CountingExperts, True),
        (ReadingExperts, True),
        (MaskingExperts, True),
        (ForgettingExperts, True),
        (GrowingExperts, True),
        (CallingExperts, True),
    ],
)
def test_experts_that_can_not_be_left_out_leave_the_same_events(
    kind: type[Experts], is_whole: bool, num_rows: int
) -> None:
    with Count() as short_operations:
        short = record(kind(), is_shortened=True, num_rows=num_rows)
    with Count() as operations:
        whole = record(kind(), is_shortened=False, num_rows=num_rows)
    # Only what its iterations do when they run speaks against leaving any out.
    assert find_row_loop_body(kind.go_through.__code__, find_first_line(kind.go_through))
    assert short.loops == ()
    assert name_events(short) == name_events(whole)
    assert (short_operations.number == operations.number) == is_whole


@pytest.mark.parametrize("family", FAMILIES)
def test_a_generation_is_that_of_all_experts_and_of_a_real_run(family: str) -> None:
    lengths = {"num_prompt_tokens": 50, "num_new_tokens": 2}
    options = RunOptions(batch_size=2, is_routing_balanced=True, may_scan=True)
    skeleton = set_up(build_family_skeleton(family, **FAMILIES[family]), experts="eager")
    short = MemoryRun(skeleton, options).generate(**lengths)
    assert short.loops
    assert all(loop.num_left_out for loop in short.loops)
    unrolled = unroll_whole(short)
    whole = MemoryRun(skeleton, options, is_each_layer_run=True).generate(**lengths)
    assert summarize(unrolled) == summarize(whole)
    weight_bytes = list_weight_bytes(skeleton)
    assert replay_timeline(short, weight_bytes=weight_bytes) == replay_timeline(
        unrolled, weight_bytes=weight_bytes
    )
    assert measure_work(skeleton, short) == measure_work(skeleton, whole)
    model = set_up(build_family(family, **FAMILIES[family]), experts="eager")
    choose_in_turns(model)
    real = generate_on_cpu(model, options, **lengths)
    assert summarize(unrolled, with_numbers=False) == summarize(real, with_numbers=False)


def choose_in_turns(model: nn.Module) -> None:
    """Let a real model's routers choose experts in turns, which takes no memory."""

    def replace_chosen(router: Any, _: object, output: Any) -> None:
        chosen = output[2]
        with torch._C._DisableTorchDispatch():
            chosen.copy_((torch.arange(chosen.numel()) % router.num_experts).view(chosen.shape))

    for module in model.modules():
        if type(module).__name__.endswith("TopKRouter"):
            module.register_forward_hook(replace_chosen)
