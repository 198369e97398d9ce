"""Decisions of blocks that call each expert as a separate module, found by running them again.

No tensor that passes such a block names the tokens: an expert receives rows, gathered in whatever
way the block's author chose. So after each call the block runs again with stand-ins: its router
repeats its output, and each expert returns a vector that names it. The block's output then holds
each token's weights. One more run, on hidden states that carry the numbers of their tokens, shows
the experts which tokens reach them. The experts themselves do not run again.

Both runs are checked against the call: every expert must have received exactly the rows that the
stand-ins saw, and the weights must not depend on the hidden states except through the router. Of
blocks that do more than that, `search` reads the decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.routing_signs import is_foreign
from moetool.anatomy.routing.walk import join_path
from moetool.errors import UntraceableError
from moetool.tracing.recording.hooks import Hooks
from moetool.tracing.recording.watch.decision import Decision, Report
from moetool.tracing.recording.watch.routers import find_scores
from moetool.tracing.recording.watch.separate.block import (
    Block,
    BlockCall,
    Part,
    Returned,
    find_block,
)
from moetool.tracing.recording.watch.separate.captures import iter_tensors
from moetool.tracing.recording.watch.separate.marked_run import MarkedRun
from moetool.tracing.recording.watch.separate.random_states import (
    kept_states,
    list_devices,
    read_states,
)
from moetool.tracing.recording.watch.separate.rerun import Rerun, spread_lengths
from moetool.tracing.recording.watch.separate.search import SumSearch
from moetool.tracing.recording.watch.separate.stand_ins import (
    as_before,
    copy_output,
    find_rows,
    kept_as_it_is,
    outline_output,
)
from moetool.tracing.recording.watch.separate.token_tags import EMPTY, read_tags, tag_tokens


class SeparateExpertsWatch:
    """Runs a block again with stand-ins after each call, and reads the decision from them.

    Attributes:
        is_searched: Whether the block does more than send its hidden states to experts and add up
            their outputs, so that decisions are read from a sum within it.
        weighs_input: Whether the weights multiply what experts receive.
    """

    def __init__(self, layer: MoeLayer, *, keep_scores: bool) -> None:
        self.output_factor: float | None = 1.0
        self.router_path: str | None = None
        self.is_searched = False
        self.weighs_input = False
        self._layer = layer
        self._keep_scores = keep_scores
        # The call of the block that is under way.
        self._call: BlockCall | None = None
        self._devices: list[torch.device] = []
        self._is_sum_checked = False
        # Whether any of its experts ran in an earlier call.
        self._have_run = False

    def install(self, model: nn.Module, report: Report, hooks: Hooks) -> None:
        """Place the hooks."""
        block = find_block(model, self._layer)
        self._devices = list_devices(block.module)
        for members in block.experts:
            for part in members:
                hooks.before(part.module, self._keep_rows(block, part), with_kwargs=True)
                hooks.after(
                    part.module,
                    self._keep_output(part, values=not block.is_plain),
                    with_kwargs=True,
                )
        for part in block.parts:
            hooks.after(part.module, self._keep_output(part), with_kwargs=True)
        hooks.before(block.module, self._begin(), with_kwargs=True)
        hooks.after(block.module, self._end(block, report), with_kwargs=True)
        hooks.on_removal(self._forget)

    def _forget(self) -> None:
        self._call = None

    def _begin(self) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._forget()
            tensors = (v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor))
            given = next(tensors, None)
            if given is None or not given.is_floating_point() or not given.dim():
                given = None
            hidden = None if given is None else given.detach().clone()
            # Offloaded weights are on the meta device until they are needed.
            if given is not None and given.is_cuda and given.device not in self._devices:
                self._devices.append(given.device)
            states = read_states(self._devices)
            self._call = BlockCall(given, hidden, self._devices, states)

        return hook

    def _keep_rows(self, block: Block, expert: Part) -> Any:
        def hook(_expert: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._call is None:
                return
            rows = find_rows(args, kwargs)
            if rows is None:
                raise block.unreadable("its experts take more than hidden states")
            rows = as_before(rows, self._call.given, self._call.hidden)
            self._call.received.setdefault(expert.path, []).append(rows)
            self._call.order.append(expert.path)

        return hook

    def _keep_output(self, part: Part, *, values: bool = True) -> Any:
        def hook(
            _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> None:
            if self._call is None:
                return
            is_input = bool(args) and output is args[0]
            kept = copy_output(output) if values else outline_output(output)
            returned = Returned(kept, is_input, args, kwargs, read_states(self._devices))
            self._call.returned.setdefault(part.path, []).append(returned)

        return hook

    def _end(self, block: Block, report: Report) -> Any:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> None:
            call = self._call
            assert call is not None
            try:
                # The runs may neither consume random numbers nor change the block.
                with torch.no_grad(), kept_states(self._devices), kept_as_it_is(module):
                    decision = self._decide(block, call, args, kwargs, output)
                self._have_run |= bool(call.received)
            finally:
                self._forget()
            report(self._layer, decision)

        return hook

    def _decide(
        self,
        block: Block,
        call: BlockCall,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> Decision:
        """Read the decision in the simpler way first; once that failed, search for a sum."""
        given, refusal = call.given, None
        if given is not None and not given.numel():
            none = given.new_zeros(0, 1)
            return Decision(none.long(), none)
        if not call.received and is_foreign(block.module):
            # Experts that a block runs in another way than by calling them are not seen.
            if given is None or not self._have_run:
                raise block.unreadable("none of its experts ran as a module")
            weights = given.new_zeros(given.numel() // given.shape[-1], 1)
            return Decision(torch.full_like(weights, -1, dtype=torch.int64), weights)
        if not self.is_searched and given is not None and block.is_plain:
            try:
                return self._probe(block, call, Rerun(block, call, args, kwargs))
            except UntraceableError as error:
                refusal = error
        again = MarkedRun(block, call, args, kwargs)
        sizes = _list_sizes([given, args, kwargs, output])
        search = SumSearch(block, call, again, sizes=sizes)
        try:
            ids, weights = search.decide()
        except UntraceableError as error:
            raise error from refusal
        self.is_searched, self.weighs_input = True, search.weighs_input
        self.output_factor = None
        return Decision(ids, weights, self._find_scores(call, len(weights)))

    def _probe(self, block: Block, call: BlockCall, rerun: Rerun) -> Decision:
        """Run the block with stand-ins and return the decision that they saw."""
        hidden, num_experts = call.hidden, self._layer.num_experts
        assert hidden is not None
        width, tagged = hidden.shape[-1], tag_tokens(hidden)
        weights = hidden.new_zeros(hidden.numel() // width, num_experts)  # (num_slots, num_experts)
        tiny = torch.finfo(hidden.dtype).smallest_normal
        rows: Mapping[str, list[torch.Tensor]] = {}
        # A vector can name as many experts as it is wide: with more experts, run again.
        for first in range(0, num_experts, width):
            found = rerun.run(hidden, first=first, length=1).output  # (num_slots, hidden_size)
            # Vectors of other lengths come back as other multiples of the weights, if nothing is
            # added to them and they depend on the hidden states through the router alone.
            again = rerun.run(tagged, first=first, length=-2, is_uneven=True)
            if not torch.allclose(spread_lengths(found, -2), again.output, rtol=0, atol=tiny):
                raise block.unreadable("it does more with its experts' outputs than weight them")
            weights[:, first : first + width] = found[:, : num_experts - first]
            rows = again.rows
        if not self._is_sum_checked:
            self._check_sum(block, rerun, hidden, weights)
        counts = _count_rows(block, call, rows)
        ids, chosen_weights = _choose(block, weights, counts)
        return Decision(ids, chosen_weights, self._find_scores(call, len(weights)))

    def _check_sum(
        self, block: Block, rerun: Rerun, hidden: torch.Tensor, weights: torch.Tensor
    ) -> None:
        """Check, once, that any outputs are weighted so, and that those of other parts are added.

        Args:
            block: Named in errors.
            rerun: Runs it again.
            hidden: The hidden states of the call. # (..., hidden_size)
            weights: A weight for every expert. # (num_slots, num_experts)
        """
        generator = torch.Generator().manual_seed(0)
        made = torch.randn(
            weights.shape[1], hidden.shape[-1], generator=generator, device="cpu"
        ).to(hidden)
        seen = rerun.run(hidden, length=1, outputs=made).output.double()
        size = weights.double().abs() @ made.double().abs()  # (num_slots, hidden_size)
        error = (seen - weights.double() @ made.double()).abs()
        if bool((error > 32 * torch.finfo(hidden.dtype).eps * size).any()):
            raise block.unreadable("it does more with its experts' outputs than weight them")
        alone = rerun.run(hidden, length=1).output.double()  # (num_slots, hidden_size), as below
        both = rerun.run(hidden, length=1, added=1).output
        others = rerun.run(hidden, length=0, added=1).output
        rounding = 8 * torch.finfo(both.dtype).eps * (both.abs() + others.abs()).double()
        if bool(((both.double() - others.double() - alone).abs() > rounding).any()):
            raise block.unreadable("it does more with its experts' outputs than weight them")
        self._is_sum_checked = True

    def _find_scores(self, call: BlockCall, num_slots: int) -> torch.Tensor | None:
        """Note which part is the router, and return its scores if they are wanted.

        Returns:
            # (num_slots, num_experts)
        """
        for path, calls in call.returned.items():
            scores = find_scores(calls[0].output, num_slots, num_experts=self._layer.num_experts)
            if scores is None or scores.shape[1] > self._layer.num_experts:
                continue
            self.router_path = join_path(self._layer.block_path, path)
            return scores if self._keep_scores else None
        return None


def _list_sizes(values: Any) -> list[int]:
    """Return how many tokens there may be, by what goes into a block and comes out of it."""
    sizes = [
        value.numel() // value.shape[-1] if value.is_floating_point() else value.numel()
        for value in iter_tensors(values)
        if value.numel() and value.dim()
    ]
    return list(dict.fromkeys(sizes))


def _count_rows(
    block: Block, call: BlockCall, seen: Mapping[str, list[torch.Tensor]]
) -> torch.Tensor:
    """Return how often each token reached each expert, after checking that it did so in the call.

    Args:
        call: The call as hooks saw it.
        seen: The tagged rows that the stand-ins received.

    Returns:
        # (num_slots, num_experts)
    """
    assert call.hidden is not None
    states = call.hidden.reshape(-1, call.hidden.shape[-1])  # (num_slots, hidden_size)
    num_slots, num_experts = len(states), len(block.experts)
    received, tagged, lengths = [], [], []
    for (expert,) in block.experts:
        first, second = (
            [rows.detach().reshape(-1, rows.shape[-1]) for rows in calls.get(expert.path, ())]
            for calls in (call.received, seen)
        )
        if [len(rows) for rows in first] != [len(rows) for rows in second]:
            raise block.unreadable("a second run sent tokens to other experts")
        received += first
        tagged += second
        lengths.append(sum(map(len, first)))
    if not received:
        return torch.zeros(num_slots, num_experts, dtype=torch.int64, device=states.device)
    rows = torch.cat(received).to(states.device)  # (num_rows, hidden_size)
    tokens = read_tags(torch.cat(tagged)).to(states.device)  # (num_rows,)
    is_empty = tokens == EMPTY
    is_token = (tokens >= 0) & (tokens < num_slots)
    if bool(~(is_token | is_empty).all()) or bool((rows[is_empty] != 0).any()):
        raise block.unreadable("its experts receive other rows than its hidden states")
    tokens = tokens[is_token]
    if not torch.equal(rows[is_token], states[tokens].to(rows.dtype)):
        raise block.unreadable("a second run sent tokens to other experts")
    sizes = torch.tensor(lengths, device=states.device)  # (num_experts,)
    experts = torch.arange(num_experts, device=states.device).repeat_interleave(sizes)
    slots = tokens * num_experts + experts[is_token]
    return torch.bincount(slots, minlength=num_slots * num_experts).view(num_slots, num_experts)


def _choose(
    block: Block, weights: torch.Tensor, counts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids and weights of the experts that ran, the largest weight first.

    Args:
        weights: A weight for every expert. # (num_slots, num_experts)
        counts: How often each token reached each expert. # (num_slots, num_experts)

    Returns:
        Both # (num_slots, top_k), padded with -1 and 0.
    """
    if bool((counts > 1).any()):
        raise block.unreadable("an expert runs on a token more than once")
    # Where an expert runs on every token, only a weight of zero shows that it was not chosen.
    runs_on_all = (counts == 1).all(dim=0)  # (num_experts,)
    chosen = (counts > 0) & (~runs_on_all | (weights != 0))
    if bool((weights.masked_fill(chosen, 0) != 0).any()):
        raise block.unreadable("it adds to what its experts return")
    width = max(int(chosen.sum(dim=1).max()), 1)
    ranked = weights.float().masked_fill(~chosen, -torch.inf)
    ids = ranked.argsort(dim=1, descending=True, stable=True)[:, :width]
    none = ~chosen.gather(1, ids)
    return ids.masked_fill(none, -1), weights.gather(1, ids).masked_fill(none, 0)
