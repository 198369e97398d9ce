"""Name what makes the peak of a long prompt, and the option that makes it smaller."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moetool.memory.answers.figures import Peak, Phase
from moetool.memory.scenario import Scenario, Task
from moetool.wording import format_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Nobody has to change anything for prompts that are shorter together.
_LONG_PROMPT = 8192
_IN_EXPERTS = ("expert", "moe", "mlp", "feed_forward", "ffn")


def note_peak_cause(skeleton: PreTrainedModel, scenario: Scenario, peak: Peak | None) -> str | None:
    """Return a note that names what makes the peak of a long prompt, or of a check of candidates.

    None if it isn't known.

    Args:
        skeleton: The model that ran.
        scenario: The scenario that was run.
        peak: The moment at which the most memory is allocated.
    """
    if peak is not None and scenario.assistant is not None and peak.phase is Phase.DECODE:
        return _name_check(scenario, peak)
    num_tokens = scenario.num_sequences * scenario.num_prompt_tokens
    if peak is None or peak.phase is not Phase.PREFILL or num_tokens < _LONG_PROMPT:
        return None
    parts = peak.parts
    if parts.cache_bytes > parts.activation_bytes:
        return _name_cache(scenario, parts.cache_bytes)
    size = format_bytes(parts.activation_bytes)
    module = peak.operation.partition(" in ")[2].lower()
    if peak.layer is None and "head" in module:
        remedy = "--task generate keeps those of the last position alone"
        if scenario.task is not Task.FORWARD:
            remedy = "a smaller batch, or shorter prompts, make them smaller"
        return f"The logits of the prompt make the peak, {size} with what else runs: {remedy}."
    if any(word in module for word in _IN_EXPERTS):
        return _name_experts(skeleton, scenario, size)
    if "att" in module and scenario.has_padding and _is_sdpa(skeleton):
        return (
            f"Attention makes the peak, {size} with its mask over all pairs of positions, which pads "
            "make necessary: --attention flash_attention_2 needs none."
        )
    return None


def _name_cache(scenario: Scenario, num_bytes: int) -> str | None:
    if scenario.cache == "quantized" or scenario.cache_plan.is_offloaded:
        return None
    return (
        f"The cache is the larger part of the peak beyond the weights, {format_bytes(num_bytes)}: "
        "--cache-dtype int4 stores it in a quarter of the bytes, and --cache offloaded in the host's "
        "memory."
    )


def _name_check(scenario: Scenario, peak: Peak) -> str | None:
    """Return a note if weights of experts that are copied for each candidate make the peak."""
    is_copy = peak.operation.startswith("index in ") and "expert" in peak.operation
    is_check = (peak.layer or "").startswith("target.")
    if not is_copy or not is_check or scenario.experts_implementation is not None:
        return None
    return (
        f"Checking candidates makes the peak, {format_bytes(peak.parts.activation_bytes)}: transformers "
        "copies the weights of the experts for each token of a round. --experts-implementation eager runs "
        "one expert after another."
    )


def _name_experts(skeleton: PreTrainedModel, scenario: Scenario, size: str) -> str:
    start = (
        f"Activations in the experts make the peak, {size}: each token of the prompt is copied for "
        "every expert that it goes to"
    )
    can_choose: bool = skeleton._can_set_experts_implementation()
    if scenario.experts_implementation == "eager" or not can_choose:
        return f"{start}. A smaller batch, or shorter prompts, make them smaller."
    return f"{start}. --experts-implementation eager runs one expert after another."


def _is_sdpa(skeleton: PreTrainedModel) -> bool:
    config = skeleton.config.get_text_config()
    return getattr(config, "_attn_implementation", None) == "sdpa"
