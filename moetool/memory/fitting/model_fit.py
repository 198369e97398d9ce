"""Whether a published model runs on a GPU, from facts that are known or simulated for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from moetool.catalogue.gpus import Gpu
from moetool.memory.fitting.known_facts import ModelSize, RunFacts
from moetool.memory.fitting.search import MOST_TOKENS_AT_ONCE, search_longest_prompt
from moetool.memory.fitting.trials import AnyTrial, Trial
from moetool.memory.gpu_overhead import CONTEXT_BYTES
from moetool.memory.scenario import Scenario


class FitSort(StrEnum):
    """Orders of models that fit: by name from A to Z, or the largest figure first."""

    TOTAL = "total"
    ACTIVE = "active"
    HEADROOM = "headroom"
    PROMPT = "prompt"
    NAME = "name"


@dataclass(frozen=True)
class ModelFit:
    """Whether a published model runs on a GPU.

    Attributes:
        model: The model's short name.
        params: All its parameters; None if unknown.
        active_params: Those that a text token runs; None if that is unknown, or differs from token
            to token.
        weights_bytes: The weights on the GPU; None if unknown.
        weights_basis: `as-loaded`, `as-published` or `copy` for a checkpoint that is published
            quantized; None for others, or if unknown.
        fits: Whether the run completes on the GPU; None if unknown.
        headroom_bytes: Memory left on the GPU. If the run doesn't fit, it is negative: the part that
            the GPU lacks. None if unknown, or if the weights alone are too large.
        least_shortage_bytes: Of a model whose weights alone are too large, the part of them that the
            GPU lacks; None for others.
        longest_prompt_tokens: The longest prompt with which it fits at the same batch size and number
            of new tokens; 0 if none does; None if unknown.
        is_whole_context: Whether only the model's context limits that prompt; None if unknown.
        may_be_longer: Whether a longer prompt might fit but is not simulated.
        reason: Why something is unknown; None if nothing is.
        note: How the run was reduced to the model's context; None if it was not.
    """

    model: str
    params: int | None = None
    active_params: int | None = None
    weights_bytes: int | None = None
    weights_basis: str | None = None
    fits: bool | None = None
    headroom_bytes: int | None = None
    least_shortage_bytes: int | None = None
    longest_prompt_tokens: int | None = None
    is_whole_context: bool | None = None
    may_be_longer: bool = False
    reason: str | None = None
    note: str | None = None

    @property
    def shortage_bytes(self) -> int | None:
        """The memory that the GPU lacks, or at least lacks; None if the model fits or is unknown."""
        if self.fits is not False or self.headroom_bytes is None:
            return self.least_shortage_bytes
        return -self.headroom_bytes


class _RefusedTrialError(Exception):
    """A run that the search for the longest prompt needs can't be simulated."""


class Simulation(Protocol):
    """Adds to facts about a model's runs, as `SimulatedModel` does."""

    def count_params(self) -> ModelSize:
        """Return the model's parameters and context."""
        ...

    def weigh(self) -> None:
        """Find the weights' bytes and the context."""
        ...

    def run(self) -> None:
        """Find the memory of the run."""
        ...

    def run_within(self, memory_bytes: int) -> None:
        """Find the memory of the run on a GPU."""
        ...

    def try_prompt(self, num_tokens: int) -> None:
        """Find the memory of a run with another prompt, or why it can't be simulated."""
        ...

    def try_prompt_within(self, num_tokens: int, memory_bytes: int) -> None:
        """Find out whether a run with another prompt completes on a GPU."""
        ...


def find_model_fit(
    model: str,
    *,
    size: ModelSize,
    facts: RunFacts,
    gpu: Gpu,
    scenario: Scenario,
    simulate: Callable[[], Simulation],
) -> ModelFit:
    """Return whether a model runs on a GPU, and its longest prompt there.

    The figures are those of `estimate_memory`. A model whose weights alone are too large is ruled
    out without a run.

    Args:
        model: The model's short name.
        size: Its parameters and context.
        facts: What is known about its runs on GPUs of this kind.
        simulate: Returns what adds a fact that is missing. It is called for each.
    """
    found = ModelFit(model, params=size.params, active_params=size.active_params)
    memory_bytes = gpu.memory_bytes
    if not facts.is_weighed and facts.unknown_because is None:
        simulate().weigh()
    found = replace(
        found, weights_bytes=facts.weights_bytes, weights_basis=_name_basis(facts.weights_basis)
    )
    if facts.weights_bytes is not None:
        shortage_bytes = facts.weights_bytes + CONTEXT_BYTES - memory_bytes
        if shortage_bytes > 0:
            return replace(
                found,
                fits=False,
                least_shortage_bytes=shortage_bytes,
                longest_prompt_tokens=0,
                is_whole_context=False,
            )
    if facts.total_bytes is None and facts.unknown_because is None:
        simulate().run()
    if facts.total_bytes is None or facts.unknown_because is not None:
        return replace(found, reason=facts.unknown_because)
    limited_bytes = _limit(facts, memory_bytes, simulate)
    found = replace(
        found,
        fits=limited_bytes is not None,
        headroom_bytes=memory_bytes
        - (facts.total_bytes if limited_bytes is None else limited_bytes),
    )
    return _add_longest_prompt(found, facts, gpu, scenario, simulate)


def _limit(facts: RunFacts, memory_bytes: int, simulate: Callable[[], Simulation]) -> int | None:
    """Return the memory of the run on a GPU; None if it doesn't complete there."""
    assert facts.total_bytes is not None
    if facts.total_bytes <= memory_bytes:
        return facts.total_bytes
    if str(memory_bytes) not in facts.limited_bytes:
        simulate().run_within(memory_bytes)
    return facts.limited_bytes[str(memory_bytes)]


def _add_longest_prompt(
    found: ModelFit,
    facts: RunFacts,
    gpu: Gpu,
    scenario: Scenario,
    simulate: Callable[[], Simulation],
) -> ModelFit:
    memory_bytes = gpu.memory_bytes

    def try_tokens(num_tokens: int) -> AnyTrial | None:
        if num_tokens == scenario.num_prompt_tokens:
            assert facts.total_bytes is not None
            return Trial(facts.total_bytes, fits=bool(found.fits))
        key = str(num_tokens)
        if key not in facts.prompt_bytes and key not in facts.prompt_refusals:
            simulate().try_prompt(num_tokens)
        if key in facts.prompt_refusals:
            # The model's code may read values of which a long prompt has too many.
            if num_tokens > scenario.num_prompt_tokens:
                return None
            raise _RefusedTrialError(facts.prompt_refusals[key])
        total_bytes = facts.prompt_bytes[key]
        if total_bytes <= memory_bytes:
            return Trial(total_bytes, fits=True)
        within = f"{num_tokens}/{memory_bytes}"
        if within not in facts.prompt_fits:
            simulate().try_prompt_within(num_tokens, memory_bytes)
        return Trial(total_bytes, fits=facts.prompt_fits[within])

    try:
        if facts.no_search_because is not None:
            raise _RefusedTrialError(facts.no_search_because)
        longest = search_longest_prompt(
            try_tokens,
            memory_bytes=memory_bytes,
            batch_size=scenario.batch_size,
            num_prompt_tokens=scenario.num_prompt_tokens,
            num_new_tokens=scenario.num_new_tokens,
            context=facts.context,
            most_tokens_at_once=MOST_TOKENS_AT_ONCE,
        )
    except _RefusedTrialError as refusal:
        return replace(found, reason=f"The longest prompt is unknown: {refusal}")
    return replace(
        found,
        longest_prompt_tokens=longest.num_tokens,
        is_whole_context=longest.is_whole_context,
        may_be_longer=longest.is_cut,
    )


def _name_basis(basis: str | None) -> str | None:
    return None if basis == "unknown" else basis


def sort_fits(fits: Sequence[ModelFit], sort: FitSort) -> list[ModelFit]:
    """Return the models that run, then those that don't, then the unknown, each sorted."""
    figures: dict[FitSort, Callable[[ModelFit], int | None]] = {
        FitSort.TOTAL: lambda fit: fit.params,
        FitSort.ACTIVE: lambda fit: fit.active_params,
        FitSort.HEADROOM: lambda fit: fit.headroom_bytes,
        FitSort.PROMPT: lambda fit: fit.longest_prompt_tokens,
    }
    ordered = sorted(fits, key=lambda fit: fit.model)
    if sort is not FitSort.NAME:
        find = figures[sort]
        ordered.sort(key=lambda fit: _rank(find(fit)))
    kinds = (True, False, None)
    return sorted(ordered, key=lambda fit: kinds.index(fit.fits))


def _rank(figure: int | None) -> tuple[bool, int]:
    """Return a key that puts the largest figure first and the unknown last."""
    return figure is None, -(figure or 0)
