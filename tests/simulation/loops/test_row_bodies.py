"""Bodies of loops over rows whose first statements choose, and others that may do anything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from moetool.simulation.loops.method_lines import SelfUse
from moetool.simulation.loops.row_bodies import Foretold, RowLoopBody, find_row_loop_body
from tests.simulation.loops.recorded_loops import find_first_line


class Loops(nn.Module):
    """Loops over the experts that got any tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts = 3
        self.up = torch.empty(3, 4, 4)
        self.activation = nn.SiLU()

    def run(self, hit: Any, mask: Any, states: Any, weights: Any, final: Any) -> Any:
        for expert in hit:
            expert = expert[0]
            if expert == self.num_experts:
                continue
            places, tokens = torch.where(mask[expert])
            current = self.activation(F.linear(states[tokens], self.up[expert]))
            current = current * weights[tokens, places, None]
            final.index_add_(0, tokens, current.to(final.dtype))
        return final

    def branch(self, hit: Any, mask: Any, states: Any, weights: Any, final: Any) -> Any:
        for expert in hit:
            tokens = torch.where(mask[expert])[0]
            final.index_add_(0, tokens, states[tokens] if weights is None else weights)
        return final

    def go_on(self, hit: Any, mask: Any, states: Any, weights: Any, final: Any) -> Any:
        first = weights
        for expert in hit:
            tokens = torch.where(mask[first])[0]
            first = expert
            final.index_add_(0, tokens, states[tokens])
        return final

    def change_choices(self, hit: Any, mask: Any, states: Any, weights: Any, final: Any) -> Any:
        for expert in hit:
            tokens = torch.where(mask[expert])[0]
            final.index_add_(0, tokens, states[tokens])
            mask[0] = weights
        return final

    def write_to_choices(self, hit: Any, mask: Any, states: Any, weights: Any, final: Any) -> Any:
        for expert in hit:
            tokens = torch.where(mask[expert])[0]
            mask.mul_(weights)
            final.index_add_(0, tokens, states[tokens])
        return final

    def write_out(self, hit: Any, mask: Any, states: Any, weights: Any, final: Any) -> Any:
        for expert in hit:
            tokens = torch.where(mask[expert])[0]
            final = torch.mul(states[tokens], weights, out=mask)
        return final

    def pass_choices(self, hit: Any, mask: Any, states: Any, weights: Any, final: Any) -> Any:
        for expert in hit:
            tokens = torch.where(mask[expert])[0]
            final.index_add_(0, tokens, states[tokens] * self.activation(mask[0]) * weights)
        return final

    def set_attribute(self, hit: Any, mask: Any, states: Any, weights: Any, final: Any) -> Any:
        for expert in hit:
            tokens = torch.where(mask[expert])[0]
            self.last = states[tokens] * weights
        return final

    def pass_self(self, hit: Any, mask: Any, states: Any, weights: Any, final: Any) -> Any:
        for expert in hit:
            tokens = torch.where(mask[expert])[0]
            final.index_add_(0, tokens, weights.apply(self, states))
        return final

    def end_early(self, hit: Any, mask: Any, states: Any, weights: Any, final: Any) -> Any:
        for expert in hit:
            if expert == self.num_experts:
                break
            final.index_add_(0, torch.where(mask[expert])[0], states * weights)
        return final

    def read_list(self, hit: Any, mask: Any, states: Any, weights: Any, final: Any) -> Any:
        made = [weights]
        for expert in hit:
            tokens = torch.where(mask[expert])[0]
            made.append(made[-1] * states[tokens])
        return final, made

    def call_result(self, hit: Any, mask: Any, states: Any, weights: Any, final: Any) -> Any:
        for expert in hit.unbind():
            final.index_add_(0, torch.where(mask[expert])[0], states * weights)
        return final


NOT_KNOWN = [
    Loops.branch,
    Loops.go_on,
    Loops.change_choices,
    Loops.write_to_choices,
    Loops.write_out,
    Loops.pass_choices,
    Loops.set_attribute,
    Loops.pass_self,
    Loops.end_early,
    Loops.read_list,
    Loops.call_result,
]


def find_first(function: Callable[..., Any]) -> RowLoopBody | None:
    """Return the body of a function's first loop."""
    return find_row_loop_body(function.__code__, find_first_line(function))


def test_a_body_says_what_chooses_and_what_is_worked_on() -> None:
    body = find_first(Loops.run)
    assert body is not None
    assert (body.rows, body.given, body.chosen) == (
        "hit",
        ("mask",),
        ("expert", "places", "tokens"),
    )
    assert body.searched == {"mask"}
    assert body.changed == {"current", "final", "states"}
    assert body.self_use.read == {"num_experts", "up"}
    assert body.self_use.called == {"activation"}


def test_choices_are_those_of_the_loop_itself() -> None:
    body = find_first(Loops.run)
    assert body is not None
    # The expert after the last one stands for those that are elsewhere.
    chosen = torch.tensor([[0, 2], [2, 0], [0, 3]])
    mask = F.one_hot(chosen, num_classes=4).permute(2, 1, 0)
    hit = mask.sum(dim=(-1, -2)).nonzero()
    one = (torch.Size([]), torch.int64)
    three, two = (torch.Size([3]), torch.int64), (torch.Size([2]), torch.int64)
    # Read: whether it ends, where a mask is set, and the position in the mask and the weights.
    assert body.foretell(hit, [mask], Loops()) == [
        Foretold((one, three, three), 4),
        Foretold((one, two, two), 4),
        Foretold(None, 0),
    ]


@pytest.mark.parametrize("function", NOT_KNOWN)
def test_a_body_that_may_do_something_else_each_time_is_not_known(
    function: Callable[..., Any],
) -> None:
    assert find_first(function) is None


class Called(nn.Module):
    """Methods and modules that a loop may call, and others."""

    def __init__(self) -> None:
        super().__init__()
        self.limit = 7.0
        self.table: dict[str, int] = {}
        self.straight = nn.SiLU()
        self.hooked = nn.SiLU()
        self.hooked.register_forward_hook(lambda *_: None)
        self.branching = nn.MultiheadAttention(4, 1)
        self.replaced = nn.SiLU()
        vars(self.replaced)["forward"] = abs
        self.held = lambda value: value

    @property
    def computed(self) -> float:
        return self.limit

    def gate(self, states: Any) -> Any:
        """Return half of what it gets."""
        first, second = states.chunk(2, dim=-1)
        return self.straight(first).clamp(max=self.limit) * second

    def gate_by_property(self, states: Any) -> Any:
        return states * self.computed

    def gate_by_hooked(self, states: Any) -> Any:
        return self.hooked(states)

    def decide(self, states: Any) -> Any:
        return states if self.limit else states * 2

    def count(self, states: Any) -> Any:
        self.limit += 1
        return states

    def look_up(self, states: Any) -> Any:
        return states * NOT_KNOWN

    @torch.no_grad()
    def decorated(self, states: Any) -> Any:
        return states * 2


@pytest.mark.parametrize(
    ("name", "is_straight"),
    [
        *((name, True) for name in ("gate", "straight")),
        *((name, False) for name in ("hooked", "branching", "replaced", "held", "missing")),
        *((name, False) for name in ("gate_by_property", "gate_by_hooked", "decide", "count")),
        *((name, False) for name in ("look_up", "decorated")),
    ],
)
def test_calls_are_straight_lines_or_may_do_anything(name: str, is_straight: bool) -> None:
    assert SelfUse(frozenset(), frozenset({name})).is_straight(Called()) == is_straight


@pytest.mark.parametrize(
    ("name", "is_settled"),
    [("limit", True), ("training", True), ("table", False), ("computed", False)],
)
def test_attributes_are_settled_if_they_are_plain(name: str, is_settled: bool) -> None:
    assert SelfUse(frozenset({name}), frozenset()).is_straight(Called()) == is_settled
