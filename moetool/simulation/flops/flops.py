"""FLOPs per token in prefill and decoding, counted in a skeleton's own forward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, LinearAttentionLayer

from moetool.anatomy.config_fields import find_context
from moetool.anatomy.routing.moe_layers import FoundExperts, find_experts
from moetool.anatomy.routing.rules import RoutingRule, is_grouped_linear
from moetool.simulation.flops.flop_counter import FlopCount, FlopCounter
from moetool.simulation.flops.prompt_length import SHORT_PROMPTS, extrapolate
from moetool.simulation.meta.generation import CantSimulate, SimulatedGeneration, TooManyOperations
from moetool.simulation.repeated.repeated_layers import RepeatedLayers

__all__ = ["CantSimulate", "FlopsPerToken", "count_flops"]


@dataclass(frozen=True)
class OperationBudget:
    """The number of operations by which a layer that goes from token to token is recognized.

    Layers that work in chunks take up to 3,200 for a prompt of 2,048; one that goes from token to
    token takes eight or more for each.

    Attributes:
        per_layer: Operations that any layer may take.
        per_token: Operations for each token of the prompt, if that is more.
        is_final: Refuse a model that exceeds them and whose FLOPs don't follow from short prompts,
            instead of counting all its operations, which may take minutes.
    """

    per_layer: int = 4000
    per_token: int = 2
    is_final: bool = False

    def allow(self, num_prompt_tokens: int) -> int:
        """Return the number of operations that a layer may take."""
        return max(self.per_layer, self.per_token * num_prompt_tokens)


DEFAULT_OPERATION_BUDGET = OperationBudget()


@dataclass(frozen=True)
class FlopsPerToken:
    """FLOPs per token of one sequence, for its prompt and the token after it.

    Attributes:
        num_prompt_tokens: Length of the prompt.
        prefill: Mean over the prompt; in an encoder-decoder, over its encoder's.
        decode: FLOPs of the next token, with the prompt in the cache; in an encoder-decoder, of the
            decoder's second token. None for a model that keeps no cache and so doesn't generate.
        experts_prefill: The part of `prefill` in routed experts. None if unknown.
        experts_decode: The part of `decode` in routed experts. None if unknown.
    """

    num_prompt_tokens: int
    prefill: float
    decode: int | None
    experts_prefill: float | None
    experts_decode: int | None

    def of_dense_model(self, *, num_routed_parameters: int) -> FlopsPerToken | None:
        """Return the FLOPs of a dense model of the same size; None if those of experts are unknown.

        It is the same model, except that every token runs every routed expert. That takes two FLOPs
        per parameter of the routed experts, whose biases, if any, are negligible.

        Args:
            num_routed_parameters: Parameters of all routed experts in the layers that text uses.
        """
        if self.experts_prefill is None:
            return None
        of_experts = 2 * num_routed_parameters
        decode = None
        if self.decode is not None and self.experts_decode is not None:
            decode = self.decode - self.experts_decode + of_experts
        return FlopsPerToken(
            num_prompt_tokens=self.num_prompt_tokens,
            prefill=self.prefill - self.experts_prefill + of_experts,
            decode=decode,
            experts_prefill=of_experts,
            experts_decode=None if decode is None else of_experts,
        )


@dataclass(frozen=True)
class _Counts:
    """FLOPs of a whole prompt, and of the token after it.

    Attributes:
        prefill: FLOPs of the prompt.
        decode: FLOPs of the token after it; None if there is none.
        has_plain_cache: Whether the cache keeps all tokens, or states of a fixed size, so that FLOPs
            are the same function of the prompt's length for all lengths.
    """

    prefill: FlopCount
    decode: FlopCount | None
    has_plain_cache: bool


def count_flops(
    skeleton: PreTrainedModel,
    *,
    num_prompt_tokens: int = 2048,
    found: FoundExperts | None = None,
    budget: OperationBudget = DEFAULT_OPERATION_BUDGET,
) -> FlopsPerToken:
    """Return the FLOPs per token of one sequence, as transformers' own code computes them.

    Each multiply-add of matrix products, attention, convolutions and triangular solves counts as two,
    by the formulas of `torch.utils.flop_counter` and some that it lacks. Causal masks are ignored:
    attention counts every query with every key that it receives. Element-wise operations are not
    counted, nor is a product written as a multiplication and a sum. Work that a model repeats for
    each token is counted, such as expanding keys and values from the cache in latent attention. The
    head is counted for the last position only, if the model supports that.

    If a layer goes from token to token, as in some state-space models, four short prompts are counted,
    from which the long one follows exactly.

    Args:
        skeleton: The model on the meta device. It is left as it was.
        num_prompt_tokens: Length of the prompt; the model's context length if that is shorter.
        found: Its routed experts, if they have been found already.
        budget: The operations beyond which short prompts are counted instead.

    Raises:
        CantSimulate: The model's forward can't run without data, or exceeds a final budget.
    """
    num_tokens = min(num_prompt_tokens, find_context(skeleton.config) or num_prompt_tokens)
    experts = _find_expert_modules(skeleton, found or find_experts(skeleton))
    try:
        limit = budget.allow(num_tokens)
        counts = _count(skeleton, num_tokens, experts=experts, max_operations=limit)
    except TooManyOperations:
        short = _extrapolate(skeleton, num_tokens, experts=experts)
        if short is None and budget.is_final:
            raise CantSimulate("counting them would take too many operations") from None
        counts = short or _count(skeleton, num_tokens, experts=experts)
    decode = counts.decode
    is_known = experts is not None
    return FlopsPerToken(
        num_prompt_tokens=num_tokens,
        prefill=counts.prefill.total / num_tokens,
        decode=decode.total if decode else None,
        experts_prefill=counts.prefill.in_experts / num_tokens if is_known else None,
        experts_decode=decode.in_experts if decode and is_known else None,
    )


def _count(
    skeleton: PreTrainedModel,
    num_tokens: int,
    *,
    experts: list[nn.Module] | None,
    max_operations: int | None = None,
) -> _Counts:
    """Run a prompt and one more token, and return their FLOPs."""
    counts = partial(
        _count_in, skeleton, num_tokens, experts=experts, max_operations=max_operations
    )
    try:
        return counts(SimulatedGeneration(skeleton))
    except CantSimulate as error:
        if skeleton.config.is_encoder_decoder:
            # Its prompt goes through the encoder, which has no cache.
            raise
        try:
            return counts(SimulatedGeneration(skeleton, is_cache_given=True))
        except CantSimulate:
            raise error from error.__cause__


def _count_in(
    skeleton: PreTrainedModel,
    num_tokens: int,
    generation: SimulatedGeneration,
    *,
    experts: list[nn.Module] | None,
    max_operations: int | None,
) -> _Counts:
    counter = FlopCounter(experts or (), max_operations_of_layer=max_operations)
    with generation.ready(), RepeatedLayers(skeleton, observers=[counter]), counter:
        generation.prefill(num_prompt_tokens=num_tokens)
        prefill = counter.count
        if not generation.can_decode:
            return _Counts(prefill, None, has_plain_cache=False)
        if skeleton.config.is_encoder_decoder:
            # With the first token, a decoder also computes the keys and values of the prompt.
            generation.decode()
        before = counter.count
        generation.decode()
    has_plain_cache = _is_plain(generation.cache)
    return _Counts(prefill, counter.count - before, has_plain_cache=has_plain_cache)


def _extrapolate(
    skeleton: PreTrainedModel, num_tokens: int, *, experts: list[nn.Module] | None
) -> _Counts | None:
    """Return the FLOPs of a prompt by extrapolation from short ones; None if that isn't exact."""
    short = [_count(skeleton, num, experts=experts) for num in SHORT_PROMPTS]
    decodes = [counts.decode for counts in short if counts.decode is not None]
    if not all(counts.has_plain_cache for counts in short) or len(decodes) < len(short):
        return None
    prefill = _extrapolate_counts([counts.prefill for counts in short], num_tokens)
    decode = _extrapolate_counts(decodes, num_tokens)
    if prefill is None or decode is None:
        return None
    return _Counts(prefill, decode, has_plain_cache=True)


def _extrapolate_counts(counts: list[FlopCount], num_tokens: int) -> FlopCount | None:
    total = extrapolate([count.total for count in counts], num_prompt_tokens=num_tokens)
    in_experts = extrapolate([count.in_experts for count in counts], num_prompt_tokens=num_tokens)
    return None if total is None or in_experts is None else FlopCount(total, in_experts)


def _is_plain(cache: object) -> bool:
    return type(cache) is DynamicCache and all(
        type(layer) in (DynamicLayer, LinearAttentionLayer) for layer in cache.layers
    )


def _find_expert_modules(skeleton: PreTrainedModel, found: FoundExperts) -> list[nn.Module] | None:
    """Return the modules in which routed experts compute; None if they are unknown."""
    layers = found.layers
    if not found.are_all_read or any(layer.rule is RoutingRule.RETRIEVAL for layer in layers):
        return None
    return [
        module
        for layer in layers
        for module in _computing_modules(skeleton.get_submodule(layer.experts_path), layer.rule)
    ]


def _computing_modules(experts: nn.Module, rule: RoutingRule) -> Iterator[nn.Module]:
    if rule is RoutingRule.SORTED_ROWS:
        # The experts' path is that of their block, which contains the router.
        yield from (child for child in experts.children() if is_grouped_linear(child))
    elif isinstance(experts, nn.ModuleList | nn.ModuleDict) and rule is not (
        RoutingRule.ROUTER_CHOICE
    ):
        yield from experts.children()
    else:
        yield experts
