"""Notes on caches and kernels: what they need, and what nothing has confirmed."""

from __future__ import annotations

from collections.abc import Iterator

from moetool.memory.assisting.assistant_memory import AssistantMemory
from moetool.memory.scenario import Attention, CacheDtype, CacheKind, Scenario
from moetool.memory.training.frozen_parts import FrozenPart
from moetool.simulation.caches.kinds import RESIDUAL_LENGTH
from moetool.simulation.training.optimizer_kinds import Optimizer
from moetool.wording import format_bytes

_FLASH = {
    "flash_attention_2": "flash-attn",
    "flash_attention_3": "flash-attn-3",
}

# torch has a copy of one version's kernels, whose memory was seen on an H200.
_CONFIRMED = {
    "flash_attention_2": "confirmed for torch's copy of them alone",
    "flash_attention_3": "not confirmed",
}

_FLEX = (
    "flex_attention compiles its masks and its kernel, with a C compiler and triton. They were not run: "
    "their memory follows from the code that torch generates, for a GPU with 132 processors. A run on an "
    "H200 took the same; what compiling takes is not simulated."
)


def is_measured(scenario: Scenario) -> bool:
    """Return whether a GPU has confirmed runs with the same cache and attention."""
    return (
        scenario.attention not in _FLASH
        and not _is_quantized_anew(scenario)
        and scenario.num_return_sequences == 1
        and scenario.assistant is None
        and (scenario.num_beams == 1 or scenario.cache is CacheKind.DYNAMIC)
    )


def _is_quantized_anew(scenario: Scenario) -> bool:
    """Return whether a quantized cache is quantized again as a whole during a scenario."""
    has_residual = scenario.cache_plan.has_residual
    return has_residual and scenario.num_new_tokens > RESIDUAL_LENGTH


def is_step_measured(scenario: Scenario) -> bool:
    """Return whether a GPU has confirmed steps of training with the same options."""
    return (
        scenario.attention is None
        and scenario.experts_implementation is None
        and scenario.optimizer is not Optimizer.SGD
        and scenario.frozen in (FrozenPart.NONE, FrozenPart.EXPERTS, FrozenPart.ROUTER)
        and scenario.trained_experts is None
        and not scenario.has_padding
    )


def note_generation(scenario: Scenario, host_cache_bytes: int) -> Iterator[str]:
    """Yield what a scenario's cache and attention need, and what is not confirmed.

    Args:
        scenario: The scenario that was run.
        host_cache_bytes: The bytes of the cache in the host's memory.
    """
    if scenario.attention in _FLASH:
        yield (
            f"{scenario.attention} needs the package {_FLASH[scenario.attention]}. Its kernels were not "
            "run: their memory follows from its source, for a GPU with 132 processors, and is "
            f"{_CONFIRMED[scenario.attention]}."
        )
    if scenario.attention is Attention.FLEX:
        yield _FLEX
    dtype = scenario.cache_dtype
    if dtype is not None and dtype.package is not None:
        yield (
            f"The cache in {dtype} needs the package {dtype.package}, as transformers' backend "
            f"{dtype.backend}: groups of 64 numbers share a scale and a zero, and up to 127 tokens stay in "
            "full precision."
        )
    if _is_quantized_anew(scenario):
        yield (
            "What it takes to quantize the whole cache anew is that of the package on the CPU, and not "
            "confirmed on a GPU."
        )
    if dtype is CacheDtype.FP8:
        yield "The cache in fp8 is read in full precision, a layer at a time."
    if dtype is CacheDtype.INT8:
        yield (
            "hqq gives unused memory back to the driver whenever it quantizes: reserved memory may be "
            "lower."
        )
    if scenario.cache_plan.is_offloaded:
        yield (
            f"The host holds {format_bytes(host_cache_bytes)} of the cache. torch takes more there, in "
            "powers of two, and keeps what it frees: 3.4 times as much in the run that was measured."
        )
    if scenario.num_return_sequences > 1 and scenario.num_beams == 1:
        yield "Several sequences for a prompt without beams are sampled, from the 50 likeliest tokens."


def note_assistant(assistant: AssistantMemory | None) -> Iterator[str]:
    """Yield what a run with an assistant assumes; nothing without one."""
    if assistant is None:
        return
    yield (
        f"{assistant.model} drafts up to {assistant.num_candidates} tokens a round. The run is simulated "
        "as if it were sure of each and the model accepted all of them: two such runs of OLMoE on an H200 "
        "took the same, within 0.001 %. How many are accepted in practice is not known. The prefill is the "
        "whole first round, in which both read the prompt."
    )
