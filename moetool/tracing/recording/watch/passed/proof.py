"""The proof that experts carry out the ids and weights that they received.

The experts run again with other numbers, which shows what no observer of operations sees inside
compiled kernels:

- With the weight of one choice alone, they return that choice's output. By the weights received,
  these outputs add up to what the experts returned.
- Scaling the last matrices of an expert scales the outputs of the choices that name this expert, and
  nothing else.
- Other hidden states of some tokens change the outputs of these tokens, and no others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

import torch

from moetool.tracing.recording.watch.passed.experts_call import ExpertsCall, NotProvenError
from moetool.tracing.recording.watch.passed.slices import ExpertSlices, scaled

# Powers of two and their negatives scale numbers without rounding.
_FACTORS = torch.tensor([1.0, -1.0, 2.0, -2.0, 4.0, -4.0, 8.0, -8.0])
# Roundings by which two runs with the same numbers, or exactly scaled ones, may differ.
_ROUNDINGS = 4
# Parameters that make up the last step of experts: a matrix, and a bias.
_MOST_LAST = 2


class Proof:
    """Proves calls of one module; what is the same in each call is found in the first.

    Args:
        slices: The parameters of its experts.
        num_experts: Number of experts.
    """

    def __init__(self, slices: Sequence[ExpertSlices], *, num_experts: int) -> None:
        self._slices = slices
        self._num_experts = num_experts
        self._last: Sequence[ExpertSlices] | None = None

    def prove(self, call: ExpertsCall) -> torch.Tensor:
        """Return which choices of each token were carried out; others were dropped.

        Returns:
            # (num_tokens, top_k)

        Raises:
            NotProvenError: Anything differs from what the ids and weights say.
        """
        ids, weights = call.decision
        rows = call.rows.reshape(call.num_tokens, -1)
        outputs = _ChoiceOutputs(call, rows)
        self._check_sum(call, outputs, weights.double())
        is_used = outputs.are_used  # (num_tokens, top_k)
        if not bool(is_used.all()):
            # Hidden states of zero have outputs of zero too, whether an expert ran or not.
            rows = replace_rows(rows, ~is_used.all(dim=1), seed=1)
            outputs = _ChoiceOutputs(call, rows)
            is_used = outputs.are_used
        if bool((ids.sort(dim=1).values.diff(dim=1) == 0).any()):
            raise NotProvenError("a token has an expert twice")
        subsets = list_subsets(rows, is_first=self._last is None)
        if self._last is None:
            if not bool(is_used.any()):
                raise NotProvenError("their outputs don't depend on the weights that they receive")
            self._last = self._find_last(call, rows, outputs)
        self._check_experts(call, rows, outputs, ids)
        _check_tokens(call, rows, subsets, is_used)
        return is_used

    def _check_sum(self, call: ExpertsCall, outputs: _ChoiceOutputs, weights: torch.Tensor) -> None:
        """Check that the outputs of all choices add up, by the weights, to what was returned."""
        returned = call.seen.output.detach().reshape(call.num_tokens, -1).double()
        terms = weights.T[:, :, None] * outputs.by_choice  # (top_k, num_tokens, width)
        rest = (returned - terms.sum(dim=0) - outputs.constant).abs()
        sizes = terms.abs().sum(dim=0) + outputs.constant.abs()
        if bool((rest > (call.top_k + 3) * find_rounding(call) * sizes).any()):
            raise NotProvenError("they apply other weights than those that they receive")

    def _find_last(
        self, call: ExpertsCall, rows: torch.Tensor, outputs: _ChoiceOutputs
    ) -> Sequence[ExpertSlices]:
        """Return the parameters that scale the outputs of all choices as they are scaled."""
        twice = torch.full((self._num_experts,), 2.0)
        for size in range(1, _MOST_LAST + 1):
            for last in combinations(reversed(self._slices), size):
                with scaled(last, twice):
                    if outputs.are_scaled(_ChoiceOutputs(call, rows), outputs.ones * 2):
                        return last
        raise NotProvenError("scaling none of their matrices scales the outputs of choices alone")

    def _check_experts(
        self, call: ExpertsCall, rows: torch.Tensor, outputs: _ChoiceOutputs, ids: torch.Tensor
    ) -> None:
        """Check that each choice's output is that of the expert that it names."""
        assert self._last is not None
        numbers = torch.arange(self._num_experts)
        base, scale = len(_FACTORS), 1
        while scale < self._num_experts:
            factors = _FACTORS[numbers // scale % base]  # (num_experts,)
            expected = factors.to(ids.device)[ids.long()].T.double()  # (top_k, num_tokens)
            with scaled(self._last, factors):
                if not outputs.are_scaled(_ChoiceOutputs(call, rows), expected):
                    raise NotProvenError("they run other experts than those whose ids they receive")
            scale *= base


class _ChoiceOutputs:
    """The output of each choice of every token.

    Attributes:
        by_choice: # (top_k, num_tokens, width)
        constant: What comes out without any weight, such as a shared expert. # (num_tokens, width)
        are_used: Whether a choice has an output. # (num_tokens, top_k)
        ones: # (top_k, num_tokens)
    """

    def __init__(self, call: ExpertsCall, rows: torch.Tensor) -> None:
        none = torch.zeros_like(call.weights).reshape(call.num_tokens, -1)
        self.constant = call.run(none, rows)
        outputs = []
        for choice in range(call.top_k):
            alone = none.clone()
            alone[:, choice] = 1
            outputs.append(call.run(alone, rows) - self.constant)
        self.by_choice = torch.stack(outputs)
        if not bool(self.by_choice.isfinite().all()):
            raise NotProvenError("some of their outputs are not finite")
        self.are_used = self.by_choice.ne(0).any(dim=2).T
        self.ones = self.by_choice.new_ones(self.by_choice.shape[:2])
        self._rounding = find_rounding(call)

    def are_scaled(self, others: _ChoiceOutputs, factors: torch.Tensor) -> bool:
        """Return whether other outputs are these, multiplied by factors, and the rest is the same.

        Args:
            others: Of the same call and rows.
            factors: # (top_k, num_tokens)
        """
        expected = factors[:, :, None] * self.by_choice
        sizes = expected.abs().amax(dim=2, keepdim=True)
        constants = self.constant.abs() + others.constant.abs()
        limits = _ROUNDINGS * self._rounding * (sizes + constants)
        is_same = (others.constant - self.constant).abs() <= _ROUNDINGS * self._rounding * constants
        is_scaled = (others.by_choice - expected).abs() <= limits
        return bool(is_same.all()) and bool(is_scaled.all())


def find_rounding(call: ExpertsCall) -> float:
    """Return the rounding of numbers that a call computes, relative to their size."""
    parameters = (p for p in call.seen.module.parameters() if p.is_floating_point())
    values = (call.rows, call.weights, call.seen.output, *parameters)
    rounding = max(torch.finfo(value.dtype).eps for value in values)
    is_rounded = call.rows.is_cuda and torch.backends.cuda.matmul.allow_tf32
    return max(rounding, torch.finfo(torch.half).eps) if is_rounded else rounding


def list_subsets(rows: torch.Tensor, *, is_first: bool) -> Iterator[torch.Tensor]:
    """Yield sets of tokens; in the first call, one of them separates each two tokens.

    Args:
        rows: # (num_tokens, width)
        is_first: Whether no call was proven before.

    Yields:
        # (num_tokens,)
    """
    if is_first:
        tokens = torch.arange(len(rows), device=rows.device)
        for bit in range(max(1, (len(rows) - 1).bit_length())):
            yield (tokens >> bit) % 2 == 0
            yield (tokens >> bit) % 2 == 1
    else:
        generator = torch.Generator().manual_seed(len(rows))
        drawn = torch.rand(len(rows), generator=generator, device="cpu")
        yield drawn.to(rows.device) < 1 / 2


def _check_tokens(
    call: ExpertsCall,
    rows: torch.Tensor,
    subsets: Iterable[torch.Tensor],
    is_used: torch.Tensor,
) -> None:
    """Check that other hidden states of some tokens change these tokens' outputs alone.

    Args:
        rows: # (num_tokens, width)
        subsets: The tokens that get others, in each run. # each (num_tokens,)
        is_used: # (num_tokens, top_k)
    """
    ones = torch.ones_like(call.weights).reshape(call.num_tokens, -1)
    before = call.run(ones, rows)
    limits = _ROUNDINGS * call.top_k * find_rounding(call) * before.abs().amax(dim=1)
    has_experts = is_used.any(dim=1)
    for is_replaced in subsets:
        after = call.run(ones, replace_rows(rows, is_replaced))
        is_changed = (after - before).abs().amax(dim=1) > limits  # (num_tokens,)
        if bool((is_changed != is_replaced)[has_experts].any()):
            raise NotProvenError("a token's output does not depend on that token alone")


def replace_rows(rows: torch.Tensor, is_replaced: torch.Tensor, *, seed: int = 0) -> torch.Tensor:
    """Return rows, some of them random ones of the same size.

    Args:
        rows: # (num_tokens, width)
        is_replaced: # (num_tokens,)
        seed: Others give other rows.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(rows.shape, generator=generator, device="cpu").to(rows.device)
    size = rows.double().square().mean().sqrt()
    others = (drawn.double() * torch.where(size > 0, size, 1)).to(rows.dtype)
    return torch.where(is_replaced[:, None], others, rows)
